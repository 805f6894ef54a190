"""From a checkpoint that fairseq trained to a folder that Hugging Face's libraries load.

What a checkpoint is for, its own settings say: the task ``sentence_prediction`` makes a classifier,
``deltasam_mirror`` a model of sentence-transformers, ``translation`` a BART that generates.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasam_fairseq import __version__
from deltasam_fairseq.conversion import bart_sources
from deltasam_fairseq.conversion.checkpoint import (
    architecture,
    load_any_model,
    section,
    weights_of,
)
from deltasam_fairseq.conversion.encoder_export import encoder_to_huggingface
from deltasam_fairseq.conversion.folder import CONFIG, WEIGHTS, safetensors_module
from deltasam_fairseq.conversion.hub_model import HubModel, Trained
from deltasam_fairseq.conversion.tokenizer_files import gpt2_files, words_of
from deltasam_fairseq.data.encoder import BERT, ROBERTA
from deltasam_fairseq.data.pipeline import finished_folder
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import file_sha256, read_json, write_json

#: Written last into the folder: what it was made from.
MARKER = "deltasam_export.json"
_BART = "bart"
#: What the name of the architecture begins with, by family.
_ARCHITECTURES = {"deltasam_bert": BERT, "roberta": ROBERTA, "bart": _BART}
#: Flags of fairseq-generate, and what they are without a recipe.
_DECODING = {"beam": 5, "lenpen": 1.0, "max-len-b": 200, "min-len": 1, "no-repeat-ngram-size": 0}


@dataclass(frozen=True)
class ExportRequest:
    """Which checkpoint to export, and what it does not say itself.

    Args:
        checkpoint: A file of fairseq's.
        vocabulary: A folder of ``deltasam prepare encoder``, or for a RoBERTa or BART one with
            ``encoder.json``, ``vocab.bpe`` and ``dict.txt``.
        dict_sha256: Hash of the dictionary that it was trained with, if it is known.
        data: Binary files of its data: for the labels, if they are not given.
        labels: Of its classes, in their order.
        label_scale: What scores were divided by for training.
        longest: Longer inputs are cut to so many tokens; none is the number of positions.
        generation: Flags of fairseq-generate.
        bos: Whether a BART gets ``<s>`` before source and output, as in fairseq's hub.
        facts: For the record: recipe, method and so on.
    """

    checkpoint: Path
    vocabulary: Path
    dict_sha256: str | None = None
    data: Path | None = None
    labels: Sequence[str] | None = None
    label_scale: float = 1.0
    longest: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    bos: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


def export(
    out: Path, request: ExportRequest, *, force: bool = False, say: Callable[[str], None] = print
) -> None:
    """Write a checkpoint as a folder of Hugging Face's, all of it or nothing.

    Args:
        out: The folder to make; it may be an earlier export.
        request: What to export. A vocabulary of another model, and a model that Hugging Face's
            library does not have, end in a :class:`UserError`.
        force: Whether to replace an export of something else.
        say: Told what happens, line by line.
    """
    say(f"reading {request.checkpoint} …")
    trained, family = _read(request.checkpoint)
    data = request.data or Path(str(trained.task.get("data")))
    if (data / "bin").is_dir():
        data = data / "bin"
    _require_dictionary(request, trained, data)
    wanted = {
        "checkpoint_sha256": file_sha256(request.checkpoint),
        "dict_sha256": file_sha256(request.vocabulary / "dict.txt"),
        "longest": request.longest,
        "labels": None if request.labels is None else list(request.labels),
        "generation": dict(request.generation),
        "bos": request.bos,
    }
    if _is_made(out, wanted, force=force):
        say(f"{out}: exported before from the same checkpoint; nothing to do")
        return
    library = safetensors_module(f"writing {out / WEIGHTS}")
    model = to_huggingface(trained, family, request, data)
    with finished_folder(out) as work:
        for name, content in {CONFIG: model.config, **model.files}.items():
            (work / name).parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                (work / name).write_text(content, encoding="utf-8", newline="\n")
            else:
                write_json(work / name, content)
        library.torch.save_file(model.state, work / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(work / CONFIG, work / WEIGHTS)  # safetensors lets nobody else read it
        facts = {**wanted, **request.facts, **model.facts, "deltasam_fairseq": __version__}
        write_json(work / MARKER, facts)
    for note in model.notes:
        say(note)
    say(f"{out}: {model.config['architectures'][0]}; load it with {model.loads_with}")


def to_huggingface(
    trained: Trained, family: str, request: ExportRequest, data: Path | None = None
) -> HubModel:
    """Convert a checkpoint that was read.

    Returns:
        What the folder will hold. What Hugging Face's library has no model for ends in a
        :class:`UserError`.
    """
    if family == _BART:
        return _bart(trained, request)
    return encoder_to_huggingface(
        trained,
        family,
        request.vocabulary,
        longest=request.longest,
        labels=request.labels,
        label_scale=request.label_scale,
        data=data,
    )


def _read(path: Path) -> tuple[Trained, str]:
    """Read a checkpoint of one of the families that can be exported."""
    content, settings = load_any_model(path)
    name = architecture(settings)
    family = next((f for prefix, f in _ARCHITECTURES.items() if name.startswith(prefix)), None)
    if family is None:
        raise UserError(
            f"{path} holds a model of the architecture {name}; a BERT of this package "
            "(deltasam_bert), a RoBERTa or a BART can be exported"
        )
    task, criterion = section(content, "task"), section(content, "criterion")
    return Trained(str(path), settings, task, criterion, weights_of(content)), family


def _require_dictionary(request: ExportRequest, trained: Trained, data: Path) -> None:
    """Check that the vocabulary is there, and is the one that the model was trained with."""
    path = request.vocabulary / "dict.txt"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give the folder of the model's vocabulary with --vocabulary: "
            "that of deltasam prepare encoder, or for a RoBERTa or BART one with encoder.json, "
            "vocab.bpe and dict.txt"
        )
    same = request.dict_sha256 in {None, file_sha256(path)}
    source = f"dict.{trained.task.get('source_lang')}.txt"
    for other in (data / "dict.txt", data / "input0" / "dict.txt", data / source):
        same = same and (not other.is_file() or words_of(other) == words_of(path))
    if not same:
        raise UserError(
            f"{path} is not the dictionary that the model was trained with; give the folder of "
            "that one with --vocabulary"
        )


def _bart(trained: Trained, request: ExportRequest) -> HubModel:
    """Return a BART that writes one text for another."""
    trained.require_task("translation")
    heads = sorted(name for name in trained.state if name.startswith("classification_heads."))
    if heads:
        raise UserError(
            f"{trained.source} has the head {heads[0].split('.')[1]!r}; of the BARTs only those "
            "that generate text can be exported"
        )
    weights = bart_sources.from_fairseq(trained.state, trained.settings, trained.source)
    config, state = bart_sources.to_huggingface(weights, trained.source)
    positions = int(config["max_position_embeddings"])
    longest = min(request.longest or positions, positions)
    files = gpt2_files(
        request.vocabulary, request.vocabulary / "dict.txt", weights.rows, longest, bos=request.bos
    )
    symbols = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config |= {
        "architectures": ["BartForConditionalGeneration"],
        **symbols,
        "forced_eos_token_id": 2,
        **trained.dropouts({"dropout": "dropout", "attention_dropout": "attention_dropout"}),
        **trained.dropouts({"activation_dropout": "activation_dropout"}),
    }
    generation = {**symbols, "forced_eos_token_id": 2, **_decoding(request.generation, positions)}
    if request.bos:
        generation["forced_bos_token_id"] = 0
    return HubModel(
        config,
        state,
        {**files, "generation_config.json": generation},
        loads_with="AutoModelForSeq2SeqLM.from_pretrained",
    )


def _decoding(flags: Mapping[str, Any], positions: int) -> dict[str, Any]:
    """Say flags of fairseq-generate in the terms of ``generation_config.json``."""
    if float(flags.get("max-len-a", 0)):
        raise UserError(
            "--max-len-a makes the longest output depend on the input, for which "
            "generation_config.json has no entry"
        )
    value = {name: type(default)(flags.get(name, default)) for name, default in _DECODING.items()}
    longest = int(min(value["max-len-b"], positions - 1))
    return {
        "num_beams": value["beam"],
        "length_penalty": value["lenpen"],
        # There, lengths count the symbol that starts the decoder; the longest one counts </s> too.
        "max_length": longest + 2,
        "min_length": value["min-len"] + 1,
        "no_repeat_ngram_size": value["no-repeat-ngram-size"],
        **({"early_stopping": True} if value["beam"] != 1 else {}),
    }


def _is_made(out: Path, wanted: Mapping[str, Any], *, force: bool) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MARKER).is_file():
        raise UserError(f"{out} exists and was not made by deltasam export; give another --out")
    if force:
        return False
    facts = read_json(out / MARKER)
    different = [name for name, value in wanted.items() if facts.get(name) != value]
    if different:
        raise UserError(
            f"{out} is the export of something else: {different[0]} was "
            f"{facts.get(different[0])}, now {wanted[different[0]]}. Pass --force to replace it, "
            "or another --out"
        )
    return True
