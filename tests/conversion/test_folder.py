"""Weights of Hugging Face, in whichever files and under whichever names they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.conversion.encoder_weights import rename
from deltasam_fairseq.conversion.folder import HuggingFaceFolder, plain_names
from deltasam_fairseq.conversion.prepare_encoder import EncoderRequest, prepare_encoder
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.errors import UserError
from tests.support.compare import assert_same_bits
from tests.support.encoder_toys import bert_state, write_bert

safetensors = pytest.importorskip("safetensors.torch")

State = dict[str, Tensor]


def old(state: State) -> State:
    """Name layer norms as the checkpoints that came from TensorFlow do."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    found = {}
    for name, value in state.items():
        for new, first in names.items():
            name = name.replace(new, first)  # noqa: PLW2901
        found[name] = value
    return found


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def pretrained(state: State) -> State:
    """As bert-base-uncased is distributed: two heads of pretraining, buffers and a copy."""
    return {
        **under("bert.", old(state)),
        "bert.embeddings.position_ids": torch.arange(26)[None],
        "cls.predictions.bias": torch.zeros(18),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(12),
        "cls.predictions.decoder.weight": state["embeddings.word_embeddings.weight"].clone(),
        "cls.seq_relationship.weight": torch.zeros(2, 12),
    }


WRITERS: Mapping[str, Callable[[State], State]] = {
    "AutoModel": lambda state: {**state, "embeddings.position_ids": torch.arange(26)[None]},
    "bert-base-uncased": pretrained,
    "model with a head": lambda state: under("bert.", state),
    "DDP": lambda state: under("module.bert.", state),
    "compiled, no head": lambda state: under("_orig_mod.", state),
    "answers to questions": lambda state: {
        **under("bert.", state),
        "qa_outputs.weight": torch.ones(2, 12),
    },
}


def prepare(tmp_path: Path, source: Path) -> PreparedEncoder:
    return prepare_encoder(tmp_path / "out", EncoderRequest(source), say=lambda line: None)


def model_of(encoder: PreparedEncoder) -> State:
    found: State = torch.load(encoder.checkpoint, weights_only=False)["model"]
    return found


@pytest.mark.parametrize("writer", WRITERS)
def test_every_class_and_age_gives_the_same_weights(writer: str) -> None:
    state = bert_state()
    assert_same_bits(rename(WRITERS[writer](state), "bert", "here"), rename(state, "bert", "here"))


def test_the_encoder_as_the_hub_distributes_it_is_prepared(tmp_path: Path) -> None:
    plain = prepare(tmp_path / "a", write_bert(tmp_path / "plain"))
    hub = prepare(tmp_path / "b", write_bert(tmp_path / "hub", pretrained(bert_state())))
    assert_same_bits(model_of(hub), model_of(plain))


def test_heads_stay_heads_under_a_wrapper() -> None:
    state = bert_state(classes=3)
    plain = rename(state, "bert", "here")
    assert "classification_heads.sentence_classification_head.out_proj.bias" in plain
    assert_same_bits(rename(under("module.", state), "bert", "here"), plain)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {**under("a.bert.", bert_state()), **under("b.bert.", bert_state())},
            r"holds 2 models \(a\.bert\.embeddings\.word_embeddings\.weight, b\.bert\.",
        ),
        (
            {**bert_state(), "embeddings.LayerNorm.gamma": torch.ones(12)},
            r"has embeddings\.LayerNorm\.weight twice, as embeddings\.LayerNorm\.gamma",
        ),
        (
            {**bert_state(), "encoder.layer.0.output.dense.weight_g": torch.ones(12, 1)},
            r"no bert of fairseq has: encoder\.layer\.0\.output\.dense\.weight_g",
        ),
        (
            {
                **under("bert.", bert_state()),
                "other.encoder.layer.0.output.dense.bias": torch.ones(12),
            },
            r"no bert of fairseq has: other\.encoder",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(state: State, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rename(state, "bert", "here")


def test_a_model_without_a_pooler_gets_a_new_one(tmp_path: Path) -> None:
    """Models for masked words have none; transformers draws one as well."""
    state = {n: v for n, v in bert_state().items() if not n.startswith("pooler.")}
    said: list[str] = []
    request = EncoderRequest(write_bert(tmp_path / "hf", under("bert.", state)))
    encoder = prepare_encoder(tmp_path / "out", request, say=said.append)
    assert encoder.facts["pooler"] is False
    assert "pooler.weight" not in model_of(encoder)
    assert any(line.startswith("the checkpoint has no pooler; every run draws") for line in said)
    half = {**state, "pooler.dense.weight": torch.ones(12, 12)}
    with pytest.raises(UserError, match=r"lacks pooler\.bias"):
        prepare(tmp_path / "half", write_bert(tmp_path / "b", half))


# -- files


def in_parts(folder: Path, state: State, ending: str) -> None:
    """Write weights as ``save_pretrained`` with a ``max_shard_size`` does."""
    names = sorted(state)
    parts = {0: names[::2], 1: names[1::2]}
    stem, suffix = ending.split(".")
    files = {part: f"{stem}-{part + 1:05}-of-00002.{suffix}" for part in parts}
    for part, mine in parts.items():
        content = {name: state[name] for name in mine}
        if suffix == "bin":
            torch.save(content, folder / files[part])
        else:
            safetensors.save_file(content, folder / files[part])
    where = {name: files[part] for part, mine in parts.items() for name in mine}
    (folder / f"{ending}.index.json").write_text(json.dumps({"weight_map": where}))


def bare(folder: Path) -> Path:
    write_bert(folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("ending", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("parts", [False, True])
def test_weights_in_one_file_or_in_several(tmp_path: Path, ending: str, parts: bool) -> None:
    state, folder = bert_state(), bare(tmp_path / "hf")
    if parts:
        in_parts(folder, state, ending)
    elif ending.endswith("bin"):
        torch.save(state, folder / ending)
    else:
        safetensors.save_file(state, folder / ending)
    assert len(HuggingFaceFolder.open(folder).weight_files()) == 1 + parts
    assert_same_bits(HuggingFaceFolder.open(folder).weights(), state)
    plain = prepare(tmp_path / "a", write_bert(tmp_path / "plain"))
    assert_same_bits(model_of(prepare(tmp_path / "b", folder)), model_of(plain))


def test_safetensors_comes_first_as_in_transformers(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "hf")
    torch.save(bert_state(seed=9), folder / "pytorch_model.bin")
    assert_same_bits(HuggingFaceFolder.open(folder).weights(), bert_state())


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    folder = bare(tmp_path / "hf")
    with pytest.raises(UserError, match=r"nor another with weights \(.*pytorch_model\.bin"):
        HuggingFaceFolder.open(folder).weights()
    torch.save({"state": {"w": torch.ones(1)}}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="something else than weights by name"):
        HuggingFaceFolder.open(folder).weights()
    in_parts(folder, bert_state(), "model.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"00002\.safetensors: no such file, but .*index\.json"):
        HuggingFaceFolder.open(folder).weights()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="it has no 'weight_map'"):
        HuggingFaceFolder.open(folder).weights()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(UserError, match="it has no 'weight_map'"):
        HuggingFaceFolder.open(folder).weights()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_in_place_of_weights_says_how_to_get_them(name: str, tmp_path: Path) -> None:
    folder = bare(tmp_path / "hf")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 133466304\n"
    (folder / name).write_text(pointer)
    with pytest.raises(UserError, match=f"{name} is a pointer of Git LFS.*: git lfs pull$"):
        HuggingFaceFolder.open(folder).weights()


def test_what_is_no_pickle_is_not_called_a_matter_of_torchs_versions(tmp_path: Path) -> None:
    folder = bare(tmp_path / "hf")
    (folder / "pytorch_model.bin").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="cannot be read as a checkpoint") as stop:
        HuggingFaceFolder.open(folder).weights()
    assert "weights_only" not in str(stop.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("ran",)

    folder = bare(tmp_path / "hf")
    torch.save({"w": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        HuggingFaceFolder.open(folder).weights()


def test_names_without_the_anchor_stay(tmp_path: Path) -> None:
    state = {"bert.odd": torch.ones(1)}
    assert plain_names(state, anchor="w", base="bert", source="here").keys() == {"bert.odd"}


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]", "{", '"a"'])
def test_a_configuration_that_is_no_object_is_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        HuggingFaceFolder.open(tmp_path)
