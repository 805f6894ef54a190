"""Making the folder that ``deltasam train … --encoder`` starts from: a BERT or a RoBERTa."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.checkpoint import load_model, save
from deltasam_fairseq.conversion.encoder_config import CONFIG_SIZES, FIXED
from deltasam_fairseq.conversion.encoder_weights import (
    EMBEDDING,
    ENCODER,
    HEAD,
    complete,
    rename,
)
from deltasam_fairseq.conversion.folder import CONFIG, HuggingFaceFolder, require_same_order
from deltasam_fairseq.conversion.heads import PlacedHead, place_head
from deltasam_fairseq.conversion.shapes import POSITION_OFFSET
from deltasam_fairseq.conversion.wordpiece import VOCABULARY, read_wordpiece
from deltasam_fairseq.data.bart import SPECIAL_SYMBOLS
from deltasam_fairseq.data.encoder import (
    ARCHITECTURES,
    BERT,
    CUTTING,
    ROBERTA,
    SIZES,
    PreparedEncoder,
)
from deltasam_fairseq.data.pipeline import finished_folder
from deltasam_fairseq.data.vocabulary import GPT2_FILES, write_bert_dictionary
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import count_lines, file_sha256, write_json, write_lines

Say = Callable[[str], None]


@dataclass(frozen=True)
class EncoderRequest:
    """Which encoder to prepare.

    Args:
        source: A folder of Hugging Face, or ``model.pt`` of fairseq's RoBERTa.
        gpt2: For a RoBERTa: folder of ``encoder.json``, ``vocab.bpe`` and ``dict.txt``.
        lowercase: For a BERT: whether text is lower-cased, if its files are not to say it.
        new_head: Whether the checkpoint's head is left out in any case.
    """

    source: Path
    gpt2: Path | None = None
    lowercase: bool | None = None
    new_head: bool = False


def prepare_encoder(
    out: Path, request: EncoderRequest, *, force: bool = False, say: Say = print
) -> PreparedEncoder:
    """Convert and check an encoder.

    Args:
        out: The folder to make; ``model.json`` is written last.
        request: Which encoder.
        force: Whether to replace a folder that was made before.
        say: Told what happens, line by line.

    Returns:
        The finished folder.

    Raises:
        UserError: If ``out`` is something else or the source cannot be used.
    """
    if (out / PreparedEncoder.MARKER).is_file() and not force:
        found = PreparedEncoder.load(out)
        different = _difference(found.facts, request)
        if not different:
            say(f"{out}: finished before from the same checkpoint; nothing to do")
            return found
        raise UserError(f"{out} was made {different}; pass --force to replace it, or another --out")
    if out.exists() and any(out.iterdir()) and not (out / PreparedEncoder.MARKER).is_file():
        raise UserError(f"{out} exists and was not made by deltasam prepare encoder; give another")
    say(f"reading {request.source} …")
    make = _from_huggingface if request.source.is_dir() else _from_fairseq
    with finished_folder(out) as work:
        facts, made = make(work, request, say), PreparedEncoder(work, {})
        facts |= {
            "source": str(request.source.resolve()),
            "dict_sha256": file_sha256(made.dictionary),
            "bytes": made.checkpoint.stat().st_size,
            "sha256": file_sha256(made.checkpoint),
        }
        write_json(work / PreparedEncoder.MARKER, facts)
    found = PreparedEncoder.load(out)
    say(f"head: {facts['head']['note']}")
    say(f"{found.checkpoint}: {facts['family']}, {facts['rows']:,} symbols")
    return found


def _difference(facts: Mapping[str, Any], request: EncoderRequest) -> str:
    """Return how a finished folder differs from the one asked for; empty if it does not."""
    if facts["source"] != str(request.source.resolve()):
        return f"from {facts['source']}"
    if request.lowercase not in (None, facts.get("lowercase")):
        return "lower-cased" if facts.get("lowercase") else "cased"
    return "with its head" if request.new_head and facts["head"]["tasks"] else ""


def _from_huggingface(out: Path, request: EncoderRequest, say: Say) -> dict[str, Any]:
    path, folder = request.source, HuggingFaceFolder.open(request.source)
    family = str(folder.config.get("model_type"))
    if family not in FIXED:
        raise UserError(f"{path / CONFIG}: model_type is {family!r}, not bert or roberta")
    folder.require(FIXED[family], family)
    found = rename(folder.weights(), family, str(path))
    head = place_head(found, folder.config, family, new=request.new_head)
    sizes = {flag: folder.size(name) for flag, name in CONFIG_SIZES.items()}
    facts: dict[str, Any] = {"family": family, "sizes": sizes, "head": head._asdict()}
    if family == BERT:
        files = read_wordpiece(path, request.lowercase)
        facts |= {name: getattr(files, name) for name in (*CUTTING, "lowercase_from")}
        say(f"{'lower-cased' if files.lowercase else 'cased'}: {files.lowercase_from}")
        write_lines(out / VOCABULARY, files.tokens)
        order = write_bert_dictionary(out / VOCABULARY, out / "dict.txt")
        _require_rows(found, len(order), path)
        found[EMBEDDING] = found[EMBEDDING][order]
        facts["pooler"] = any(name.startswith("pooler.") for name in found)
        if not facts["pooler"]:
            say("the checkpoint has no pooler; every run draws a new one, as it does its head")
    else:
        sizes["max-positions"] -= POSITION_OFFSET
        gpt2 = _gpt2_vocabulary(request, out)
        if not require_same_order(path, gpt2 / "dict.txt", gpt2 / "encoder.json"):
            say("the order of the vocabulary was not compared: there is no vocab.json")
        words = count_lines(gpt2 / "dict.txt")
        _require_rows(found, words + SPECIAL_SYMBOLS + 1, path)
    state = complete(found, sizes, family, str(path))
    _write(out, state, family, sizes)
    return {**facts, "rows": int(state[EMBEDDING].size(0))}


def _from_fairseq(out: Path, request: EncoderRequest, say: Say) -> dict[str, Any]:
    del say
    content, settings = load_model(
        request.source, "RoBERTa", "; a BERT is read from a folder of Hugging Face"
    )
    default = ARCHITECTURES.get(str(settings.get("arch")), ARCHITECTURES["roberta_base"])
    sizes = {flag: settings.get(flag.replace("-", "_"), default[flag]) for flag in SIZES}
    tables = (
        v for n, v in content["model"].items() if n.endswith("sentence_encoder.embed_tokens.weight")
    )
    rows = len(next(tables, ()))
    dictionary = _gpt2_vocabulary(request, out) / "dict.txt"
    words = count_lines(dictionary)
    if rows not in (words + SPECIAL_SYMBOLS, words + SPECIAL_SYMBOLS + 1):
        raise UserError(
            f"{request.source} embeds {rows} symbols, but {dictionary} has {words} words"
        )
    heads = [name for name in content["model"] if name.startswith(f"{HEAD}.")]
    head = PlacedHead()
    if heads:
        # fairseq numbers classes by their frequency in the data that the head was trained on.
        head = PlacedHead(note="left out: nothing in the checkpoint names its rows")
        content["model"] = {n: v for n, v in content["model"].items() if n not in heads}
        torch.save(content, out / "model.pt")
    else:
        shutil.copyfile(request.source, out / "model.pt")
    return {"family": ROBERTA, "sizes": sizes, "rows": int(rows), "head": head._asdict()}


def _gpt2_vocabulary(request: EncoderRequest, out: Path) -> Path:
    """Copy the files of a RoBERTa's vocabulary, and return the folder that they are from."""
    if request.lowercase is not None:
        raise UserError("--lower-case and --cased are for a BERT; GPT-2's BPE keeps capitals")
    if request.gpt2 is None:
        raise UserError(
            "a RoBERTa needs --gpt2 DIR, which holds encoder.json, vocab.bpe and dict.txt"
        )
    (out / "gpt2").mkdir(exist_ok=True)
    for name in (*GPT2_FILES, "dict.txt"):
        if not (request.gpt2 / name).is_file():
            raise UserError(f"{request.gpt2 / name}: no such file")
        shutil.copyfile(request.gpt2 / name, out / ("" if name == "dict.txt" else "gpt2") / name)
    return request.gpt2


def _require_rows(found: Mapping[str, Tensor], rows: int, folder: Path) -> None:
    table = found.get(EMBEDDING)
    embedded = table.size(0) if table is not None and table.ndim == 2 else 0
    if embedded != rows:
        raise UserError(
            f"{folder} embeds {embedded} tokens, but the vocabulary has {rows}; give the one that "
            "the model was trained with"
        )


def _write(out: Path, state: dict[str, Tensor], family: str, sizes: Mapping[str, Any]) -> None:
    args = argparse.Namespace(
        arch="deltasam_bert_base" if family == BERT else "roberta_base",
        task="sentence_prediction",
        criterion="sentence_prediction",
        **{flag.replace("-", "_"): value for flag, value in sizes.items()},
    )
    # fairseq's encoder registers its version beside its weights.
    whole = {**state, f"{ENCODER}.version": torch.tensor([3.0])}
    save(args, whole, out / "model.pt", criterion="SentencePredictionCriterion")
