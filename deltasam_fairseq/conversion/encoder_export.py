"""BERTs and RoBERTas that fairseq trained, in Hugging Face's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.conversion.encoder_config import CONFIG_SIZES, FIXED
from deltasam_fairseq.conversion.encoder_weights import (
    EMBEDDING,
    HEAD,
    LM_HEAD,
    complete,
    rename_back,
)
from deltasam_fairseq.conversion.hub_model import HubModel, Trained
from deltasam_fairseq.conversion.shapes import POSITION_OFFSET
from deltasam_fairseq.conversion.tokenizer_files import Files, gpt2_files, wordpiece_files, words_of
from deltasam_fairseq.conversion.wordpiece import VOCABULARY
from deltasam_fairseq.data.encoder import ARCHITECTURES, BERT, CUTTING, SIZES, PreparedEncoder
from deltasam_fairseq.data.mirror import LONGEST
from deltasam_fairseq.data.vocabulary import bert_order
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_marker

_CLASSIFIES, _EMBEDS, _MASKS = "sentence_prediction", "deltasam_mirror", "masked_lm"
_HEADS = "classification_heads."
#: Settings under which an encoder of fairseq is what Hugging Face calls a BERT or a RoBERTa.
_SETTINGS: Mapping[str, object] = {
    "encoder_normalize_before": False,
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "encoder_learned_pos": True,
    "no_token_positional_embeddings": False,
    "adaptive_input": False,
    "encoder_layers_to_keep": None,
    "activation_fn": "gelu",
    "pooler_activation_fn": "tanh",
    "untie_weights_roberta": False,
    "spectral_norm_classification_head": False,
}
_DROPOUTS = {"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"}
#: What sentence-transformers calls the poolings that it has.
_POOLINGS = {"cls": "cls_token", "mean": "mean_tokens"}


def encoder_to_huggingface(
    trained: Trained,
    family: str,
    vocabulary: Path,
    *,
    longest: int | None = None,
    labels: Sequence[str] | None = None,
    label_scale: float = 1.0,
    data: Path | None = None,
) -> HubModel:
    """Convert an encoder with its head, or with its pooling if it embeds sentences.

    Args:
        trained: The checkpoint.
        family: ``BERT`` or ``ROBERTA``.
        vocabulary: Folder of its vocabulary.
        longest: Longer inputs of a classifier are cut to so many tokens.
        labels: The classes of its head, in their order.
        label_scale: What scores were divided by for training.
        data: Binary files with the labels, if they are not given.

    Returns:
        What the folder will hold. A checkpoint without a head makes a model without one; a
        RoBERTa has then its head for masked words, unless that is zero. What Hugging Face's
        library has no model for ends in a :class:`UserError`.
    """
    trained.require_task(_CLASSIFIES, _EMBEDS, _MASKS)
    trained.require(_SETTINGS)
    state, sizes = _weights(trained, family)
    rows = state[EMBEDDING].size(0)
    positions = sizes["max-positions"]
    limit = LONGEST if trained.task_name == _EMBEDS else longest or positions
    files, pad = _tokenizer(state, family, vocabulary, rows, min(limit, positions))
    config: dict[str, Any] = {
        "architectures": [],
        "model_type": family,
        **FIXED[family],
        **{name: sizes[flag] for flag, name in CONFIG_SIZES.items()},
        "vocab_size": rows,
        "pad_token_id": pad,
        **trained.dropouts(_DROPOUTS),
    }
    if family != BERT:
        config["max_position_embeddings"] += POSITION_OFFSET
        config |= {"bos_token_id": 0, "eos_token_id": 2}
    facts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    kind, loads_with = "Model", "AutoModel.from_pretrained"
    if any(name.startswith(HEAD) for name in state):
        _require_usual_input(trained, family, data)
        labelled = _labels(trained, len(state[f"{HEAD}.out_proj.bias"]), labels, data)
        config |= {**labelled, **trained.dropouts({"classifier_dropout": "pooler_dropout"})}
        if label_scale != 1:
            facts = {"label_scale": label_scale}
            notes = (f"its output is a score from 0 to 1: multiply it by {label_scale:g}",)
        kind = "ForSequenceClassification"
        loads_with = f"AutoModel{kind}.from_pretrained"
    elif trained.task_name == _EMBEDS:
        pooling = str(trained.criterion.get("pooling", "cls"))
        files |= _sentence_transformer(trained, pooling, sizes["encoder-embed-dim"], limit)
        facts, loads_with = {"pooling": pooling}, "SentenceTransformer"
    elif family != BERT and state[f"{LM_HEAD}.layer_norm.weight"].any():
        kind = "ForMaskedLM"
        loads_with = f"AutoModel{kind}.from_pretrained"
    if kind != "ForMaskedLM":
        state = {name: value for name, value in state.items() if not name.startswith(LM_HEAD)}
    config["architectures"] = [f"{family.capitalize()}{kind}"]
    return HubModel(config, rename_back(state, family), files, loads_with, facts, notes)


def _weights(trained: Trained, family: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return weights, the head by its usual name, and sizes."""
    settings, source = trained.settings, trained.source
    default = ARCHITECTURES.get(str(settings.get("arch")), ARCHITECTURES["roberta_base"])
    sizes = {flag: int(settings.get(flag.replace("-", "_")) or default[flag]) for flag in SIZES}
    heads = sorted({n.split(".")[1] for n in trained.state if n.startswith(_HEADS)})
    usual = HEAD.removeprefix(_HEADS)
    name = str(trained.criterion.get("classification_head_name", usual))
    if heads and (heads != [name] or trained.task_name != _CLASSIFIES):
        raise UserError(
            f"{source} has the heads {', '.join(heads)}; one head can be exported, that of a "
            f"model of {_CLASSIFIES}"
        )
    found = {
        n.replace(f"{_HEADS}{name}.", f"{HEAD}.", 1): value.float()
        for n, value in trained.state.items()
    }
    surplus = f"has {{}}, which no {family} of Hugging Face's has"
    return complete(found, sizes, family, source, surplus=surplus), sizes


def _tokenizer(
    state: dict[str, Tensor], family: str, vocabulary: Path, rows: int, longest: int
) -> tuple[Files, int]:
    """Return the tokenizer and the number of its padding; puts BERT's rows back in its order."""
    if family != BERT:
        gpt2 = vocabulary / "gpt2" if (vocabulary / "gpt2").is_dir() else vocabulary
        return gpt2_files(gpt2, vocabulary / "dict.txt", rows, longest, bos=True), 1
    facts = read_marker(
        vocabulary / PreparedEncoder.MARKER,
        f"{vocabulary} has no {PreparedEncoder.MARKER}; a BERT needs the folder that deltasam "
        "prepare encoder made",
    )
    order = bert_order(vocabulary / VOCABULARY)
    if len(order) != rows:
        raise UserError(
            f"the checkpoint embeds {rows} symbols, but {vocabulary / VOCABULARY} has "
            f"{len(order)}; give the vocabulary that the model was trained with"
        )
    state[EMBEDDING] = torch.empty_like(state[EMBEDDING]).index_copy_(
        0, torch.tensor(order), state[EMBEDDING]
    )
    cutting = {name: bool(facts[name]) for name in CUTTING}
    return wordpiece_files(vocabulary / VOCABULARY, cutting, longest), order[1]


def _require_usual_input(trained: Trained, family: str, data: Path | None) -> None:
    """Refuse a classifier that met other special tokens than Hugging Face's tokenizers write."""
    wanted: dict[str, int | None] = {"init_token": 0}
    pairs = data is None or not (data / "input0").is_dir() or (data / "input1").is_dir()
    if pairs:
        wanted["separator_token"] = None if family == BERT else 2
    for name, value in wanted.items():
        if trained.task.get(name, value) != value:
            flag = f"--{name.replace('_', '-')}"
            usual = f"{flag} {value}" if value is not None else f"no {flag}"
            raise UserError(
                f"{trained.source} was trained with {flag} {trained.task[name]}; what a tokenizer "
                f"of a {family} writes is that of {usual}"
            )


def _labels(
    trained: Trained, rows: int, labels: Sequence[str] | None, data: Path | None
) -> dict[str, Any]:
    """Return what ``config.json`` says of the outputs."""
    regression = trained.task.get("regression_target") or trained.criterion.get("regression_target")
    kind = "regression" if regression else "single_label_classification"
    names = list(labels or ())
    if regression:
        names = [f"LABEL_{row}" for row in range(rows)]
    elif not names:
        file = None if data is None else data / "label" / "dict.txt"
        if file is None or not file.is_file():
            raise UserError(
                f"the classes of {trained.source} have no names: {file or 'label/dict.txt'} is "
                "not there; give the data that it was trained on with --data"
            )
        names = words_of(file)[:rows]
    if len(names) != rows:
        raise UserError(
            f"{trained.source} has {rows} classes, but there are {len(names)} labels: "
            f"{', '.join(names)}"
        )
    return {
        "problem_type": kind,
        "id2label": {str(row): name for row, name in enumerate(names)},
        "label2id": {name: row for row, name in enumerate(names)},
    }


def _sentence_transformer(trained: Trained, pooling: str, width: int, longest: int) -> Files:
    """Return the files by which sentence-transformers knows how to embed."""
    if pooling not in _POOLINGS:
        raise UserError(
            f"{trained.source} was trained with --pooling {pooling}, for which sentence-"
            f"transformers has no name; it has {', '.join(_POOLINGS)}"
        )
    module = "sentence_transformers.models"
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            **{f"pooling_mode_{theirs}": ours == pooling for ours, theirs in _POOLINGS.items()},
        },
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
    }
