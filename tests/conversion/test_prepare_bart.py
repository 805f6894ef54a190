import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltasam_fairseq.conversion.prepare_bart import BartRequest, prepare_bart
from deltasam_fairseq.data.bart import PreparedBart
from deltasam_fairseq.errors import UserError
from tests.support.bart_toys import (
    TINY,
    WORDS,
    hugging_face_state,
    noisy_state,
    write_dictionary,
    write_hugging_face,
)


def converted(tmp_path: Path, source: Path | None, **wishes: Any) -> PreparedBart:
    force = wishes.pop("force", False)
    request = BartRequest(write_dictionary(tmp_path / "dict.txt"), source, **wishes)
    return prepare_bart(tmp_path / "bart", request, force=force, say=lambda line: None)


def write_fairseq(path: Path, state: dict[str, Any] | None = None, **settings: Any) -> Path:
    args = {"arch": "bart_large", **{n.replace("-", "_"): v for n, v in TINY.items()}, **settings}
    content = {"args": argparse.Namespace(**args), "model": state or noisy_state()}
    torch.save(content, path)
    return path


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    bart = converted(tmp_path, write_fairseq(tmp_path / "model.pt"))
    facts = json.loads((bart.path / "bart.json").read_text())
    assert facts["kind"] == "fairseq"
    assert facts["rows"] == WORDS + 5
    assert facts["sizes"] == TINY
    assert facts["bytes"] == bart.checkpoint.stat().st_size
    content = torch.load(bart.checkpoint, weights_only=False)
    storages = {v.untyped_storage().data_ptr() for n, v in content["model"].items() if "token" in n}
    assert len(storages) == 1, "the shared embedding is stored once"


def test_random_weights_have_the_shape_asked_for_and_a_seed(tmp_path: Path) -> None:
    first = converted(tmp_path, None, random="small", seed=2)
    assert first.facts["sizes"]["encoder-embed-dim"] == 64
    again = converted(tmp_path, None, random="small", seed=2, force=True)
    other = converted(tmp_path, None, random="small", seed=3, force=True)
    assert first.facts["sha256"] == again.facts["sha256"] != other.facts["sha256"]
    state = torch.load(first.checkpoint, weights_only=False)["model"]
    vectors = {name: value for name, value in state.items() if value.dim() == 1}
    norms = {name for name in vectors if "norm" in name and name.endswith("weight")}
    assert norms
    for name, value in vectors.items():
        assert (value == float(name in norms)).all() or not name.endswith(("weight", "bias")), name


def test_a_finished_folder_is_used_again_and_not_replaced_unasked(tmp_path: Path) -> None:
    bart = converted(tmp_path, None)
    before = bart.checkpoint.stat().st_mtime_ns
    assert converted(tmp_path, None).checkpoint.stat().st_mtime_ns == before
    with pytest.raises(
        UserError, match="source was small, seed 1, now small, seed 2. Pass --force"
    ):
        converted(tmp_path, None, seed=2)


def test_a_folder_of_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "bart").mkdir()
    (tmp_path / "bart" / "thesis.tex").touch()
    with pytest.raises(UserError, match="was not made by deltasam prepare bart"):
        converted(tmp_path, None, force=True)


def test_a_broken_off_conversion_is_not_taken_for_good(tmp_path: Path) -> None:
    (tmp_path / "bart").mkdir()
    (tmp_path / "bart" / "model.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="it has no bart.json"):
        PreparedBart.load(tmp_path / "bart")
    assert converted(tmp_path, None).facts["kind"] == "random"


def test_a_checkpoint_that_shrank_is_noticed(tmp_path: Path) -> None:
    bart = converted(tmp_path, None)
    bart.checkpoint.write_bytes(b"half")
    with pytest.raises(UserError, match=r"model\.pt has 4 bytes, not"):
        PreparedBart.load(bart.path)
    bart.checkpoint.unlink()
    with pytest.raises(UserError, match=r"model\.pt is missing"):
        PreparedBart.load(bart.path)


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; give model.pt of fairseq's bart.large"):
        converted(tmp_path, tmp_path / "nowhere.pt")


def test_another_dictionary_is_an_error(tmp_path: Path) -> None:
    source = write_fairseq(tmp_path / "model.pt", noisy_state(rows=WORDS + 7))
    with pytest.raises(UserError, match=r"embeds 47 symbols, but the dictionary has 40 words"):
        converted(tmp_path, source)
    assert not (tmp_path / "bart").exists()


def test_a_model_without_mask_is_taken(tmp_path: Path) -> None:
    source = write_fairseq(tmp_path / "model.pt", noisy_state(rows=WORDS + 4))
    assert converted(tmp_path, source).facts["rows"] == WORDS + 4


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in noisy_state().items() if key != name}


@pytest.mark.parametrize(
    ("state", "settings", "message"),
    [
        (without("decoder.layers.2.fc1.bias"), {}, r"lacks decoder\.layers\.2\.fc1\.bias"),
        ({**noisy_state(), "odd": torch.ones(1)}, {}, "has, beyond BART, odd"),
        (None, {"encoder_ffn_embed_dim": 32}, r"fc1\.weight is \(20, 12\), not \(32, 12\)"),
        (None, {"arch": "transformer"}, "architecture transformer, not BART"),
        (None, {"no_scale_embedding": False}, "no_scale_embedding is False; a BART model has True"),
        (
            {**noisy_state(), "decoder.embed_tokens.weight": torch.ones(WORDS + 5, 12)},
            {},
            "does not share its embeddings",
        ),
        (
            {**noisy_state(), "encoder.layers.0.fc1.bias": torch.full((20,), torch.nan)},
            {},
            "not finite",
        ),
        ({"w": torch.ones(1)}, {}, "has no encoder.embed_tokens.weight; is it a BART"),
    ],
)
def test_a_model_that_is_no_bart_is_an_error(
    tmp_path: Path, state: dict[str, Any] | None, settings: dict[str, Any], message: str
) -> None:
    source = write_fairseq(tmp_path / "model.pt", state, **settings)
    with pytest.raises(UserError, match=message):
        converted(tmp_path, source)


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip", b"(a)", b".", b"Go"]
)
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        converted(tmp_path, tmp_path / "model.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    torch.save({"model": {}, "args": Evil()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"an object of the class \S*print, .*could run code"):
        converted(tmp_path, tmp_path / "model.pt")


def test_what_fairseq_keeps_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    state = noisy_state()
    copies = {"encoder.layers.0.in_proj_weight": state["encoder.layers.0.fc1.weight"]}
    copies |= {"encoder.version": torch.tensor([3.0]), "classification_heads.a.b": torch.ones(1)}
    copies["encoder.embed_positions._float_tensor"] = torch.ones(1)
    path = write_fairseq(tmp_path / "model.pt", {**state, **copies})
    assert converted(tmp_path, path).facts["rows"] == WORDS + 5


@pytest.mark.fairseq
def test_meters_of_an_early_checkpoint_are_passed_over(tmp_path: Path) -> None:
    from fairseq.logging.meters import AverageMeter, StopwatchMeter

    path = write_fairseq(tmp_path / "model.pt")
    content = torch.load(path, weights_only=False)
    content["extra_state"] = {"train_meters": {"loss": AverageMeter(), "wall": StopwatchMeter()}}
    torch.save(content, path)
    assert converted(tmp_path, path).facts["rows"] == WORDS + 5


def test_the_scores_of_a_validation_are_passed_over(tmp_path: Path) -> None:
    path = write_fairseq(tmp_path / "model.pt")
    content = torch.load(path, weights_only=False)
    content["extra_state"] = {"metrics": {"_bleu_counts": np.arange(4)}, "best": np.float64(3.5)}
    torch.save(content, path)
    assert converted(tmp_path, path).facts["rows"] == WORDS + 5


@pytest.mark.parametrize("content", [{"weights": {}}, {"model": {"w": torch.ones(1)}}])
def test_a_checkpoint_of_something_else_is_an_error(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match="it has no 'model'|no 'args' and no 'cfg'"):
        converted(tmp_path, tmp_path / "model.pt")


def test_the_folder_of_a_fairseq_model_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "bart.large").mkdir()
    write_fairseq(tmp_path / "bart.large" / "model.pt")
    with pytest.raises(UserError, match=r"give .*bart\.large/model\.pt"):
        converted(tmp_path, tmp_path / "bart.large")


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def _needs_safetensors(self) -> None:
        pytest.importorskip("safetensors")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "t5"}, "model_type is 't5'; fairseq's BART needs 'bart'"),
            ({"scale_embedding": True}, "scale_embedding is True"),
            ({"activation_function": "silu"}, "'silu' is not among gelu, relu"),
            ({"vocab_size": 9}, "vocab_size is 9, but the weights embed 45"),
            ({"d_model": None}, "d_model is None, not a number"),
            ({"decoder_layers": 2}, r"has, beyond BART, decoder\.layers\.2\."),
            ({"max_position_embeddings": 16}, r"embed_positions\.weight is \(20, 12\), not \(18"),
        ],
    )
    def test_another_configuration(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        source = write_hugging_face(tmp_path / "hf", hugging_face_state(noisy_state()), **changes)
        with pytest.raises(UserError, match=message):
            converted(tmp_path, source)

    def test_a_bias_at_the_output_is_not_dropped_silently(self, tmp_path: Path) -> None:
        state = hugging_face_state(noisy_state())
        state["final_logits_bias"][0, 7] = 0.5
        with pytest.raises(UserError, match=r"final_logits_bias is not zero \(up to 0\.5\)"):
            converted(tmp_path, write_hugging_face(tmp_path / "hf", state))

    def test_an_output_of_its_own_is_not_dropped_silently(self, tmp_path: Path) -> None:
        state = hugging_face_state(noisy_state())
        state["lm_head.weight"] = state["model.shared.weight"] + 1
        with pytest.raises(UserError, match="does not share its embeddings"):
            converted(tmp_path, write_hugging_face(tmp_path / "hf", state))

    def test_copies_of_the_embedding_and_heads_are_taken(self, tmp_path: Path) -> None:
        state = hugging_face_state(noisy_state())
        for name in ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
            state[f"{name}.weight"] = state["model.shared.weight"].clone()
        state["classification_head.dense.weight"] = torch.ones(2, 2)
        source = write_hugging_face(tmp_path / "hf", state)
        assert converted(tmp_path, source).facts["kind"] == "huggingface"

    @pytest.mark.parametrize(
        "kept",
        [
            ("model.shared",),
            ("model.encoder.embed_tokens", "model.decoder.embed_tokens"),
            ("model.decoder.embed_tokens",),
            ("lm_head",),
        ],
    )
    def test_the_embedding_is_stored_under_any_of_its_names(
        self, tmp_path: Path, kept: tuple[str, ...]
    ) -> None:
        """Which copy of tied weights safetensors keeps depends on who wrote the file."""
        state = hugging_face_state(noisy_state())
        matrix = state.pop("model.shared.weight")
        state |= {f"{name}.weight": matrix.clone() for name in kept}
        bart = converted(tmp_path, write_hugging_face(tmp_path / "hf", state))
        model = torch.load(bart.checkpoint, weights_only=False)["model"]
        assert torch.equal(model["encoder.embed_tokens.weight"], matrix)

    @pytest.mark.parametrize("name", ["encoder.embed_tokens", "decoder.embed_tokens"])
    def test_an_embedding_of_one_side_alone_is_not_dropped_silently(
        self, tmp_path: Path, name: str
    ) -> None:
        state = hugging_face_state(noisy_state())
        state[f"model.{name}.weight"] = state["model.shared.weight"] + 1
        with pytest.raises(UserError, match=f"{name}.weight is not the matrix shared.weight"):
            converted(tmp_path, write_hugging_face(tmp_path / "hf", state))

    @pytest.mark.parametrize("before", ["", "module.model.", "module."])
    def test_names_of_every_class_and_wrapper(self, tmp_path: Path, before: str) -> None:
        """Of BartModel, which saves neither ``model.`` nor a bias, and under DDP."""
        state = hugging_face_state(noisy_state())
        plain = converted(tmp_path, write_hugging_face(tmp_path / "hf", state)).facts["sha256"]
        del state["final_logits_bias"]
        other = {f"{before}{name.removeprefix('model.')}": value for name, value in state.items()}
        extra = "encoder.version" if not before else f"{before}decoder.version"
        other |= {extra: torch.tensor([3.0]), "qa_outputs.weight": torch.ones(2, 12)}
        source = write_hugging_face(tmp_path / "other", other)
        assert converted(tmp_path, source, force=True).facts["sha256"] == plain

    def test_pickled_weights_are_read(self, tmp_path: Path) -> None:
        state = hugging_face_state(noisy_state())
        source = write_hugging_face(tmp_path / "hf", state)
        (source / "model.safetensors").unlink()
        torch.save(state, source / "pytorch_model.bin")
        facts = converted(tmp_path, source).facts
        assert facts["source_bytes"] == (source / "pytorch_model.bin").stat().st_size

    def test_files_that_are_missing_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "hf").mkdir()
        with pytest.raises(UserError, match=r"has no config\.json"):
            converted(tmp_path, tmp_path / "hf")
        source = write_hugging_face(tmp_path / "full", hugging_face_state(noisy_state()))
        (source / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
            converted(tmp_path, source)
        (source / "model.safetensors").write_bytes(b"half")
        with pytest.raises(UserError, match=r"cannot be read.*download it again"):
            converted(tmp_path, source)

    def test_without_safetensors_the_message_says_how_to_get_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_hugging_face(tmp_path / "hf", hugging_face_state(noisy_state()))
        monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
        monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
        with pytest.raises(UserError, match="pip install safetensors"):
            converted(tmp_path, source)

    def test_the_order_of_the_vocabulary_is_compared(self, tmp_path: Path) -> None:
        source = write_hugging_face(tmp_path / "hf", hugging_face_state(noisy_state()))
        encoder = {f"t{number}": number for number in range(WORDS)}
        (tmp_path / "encoder.json").write_text(json.dumps(encoder))
        rows = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        rows |= {token: number + 4 for token, number in encoder.items()}
        (source / "vocab.json").write_text(json.dumps(rows))
        assert converted(tmp_path, source, encoder_json=tmp_path / "encoder.json").facts
        (source / "vocab.json").write_text(json.dumps({**rows, "t8": 13, "t9": 12}))
        with pytest.raises(UserError, match=r"gives 't8' the number 13, but in .* it has 12"):
            converted(tmp_path, source, encoder_json=tmp_path / "encoder.json", force=True)
        # transformers 5 writes no vocab.json.
        (source / "vocab.json").unlink()
        whole = {"model": {"type": "BPE", "vocab": {**rows, "t7": 12, "t8": 11}}}
        (source / "tokenizer.json").write_text(json.dumps(whole))
        with pytest.raises(UserError, match=r"tokenizer\.json gives 't7' the number 12, but in"):
            converted(tmp_path, source, encoder_json=tmp_path / "encoder.json", force=True)
