"""Converted models say what the originals said."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.conversion.prepare_bart import BartRequest, prepare_bart
from deltasam_fairseq.data.bart import PreparedBart
from tests.conversion.plain_bart import reference_logits
from tests.support.bart_toys import (
    TINY,
    TINY_CONFIG,
    WORDS,
    hugging_face_state,
    noisy_state,
    write_dictionary,
    write_hugging_face,
)

pytestmark = pytest.mark.fairseq

EOS = 2
MASK = WORDS + 4
SOURCE = torch.tensor([5, 9, 30, 7, MASK - 1, 4, EOS])
DECODER = torch.tensor([EOS, 6, 6, 12, 31])
TOLERANCE = 1e-5


def load_in_fairseq(bart: PreparedBart, *, mask: bool) -> Any:
    """Build the model that a checkpoint describes, as fairseq's hub does."""
    from fairseq import checkpoint_utils
    from fairseq.data import Dictionary

    from deltasam_fairseq.fairseq_plugin.compat import allow_own_checkpoints

    allow_own_checkpoints()
    words = Dictionary.load(str(write_dictionary(bart.path / "dict.txt")))
    if mask:
        words.add_symbol("<mask>")
    task = toy_task(words)
    (model,), _ = checkpoint_utils.load_model_ensemble([str(bart.checkpoint)], task=task)
    return model.eval()


def toy_task(words: Any) -> Any:
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    config = TranslationConfig(source_lang="source", target_lang="target")
    return TranslationTask(config, words, words)


def logits(model: Any, source: Tensor, decoder: Tensor) -> Tensor:
    with torch.no_grad():
        lengths = torch.tensor([len(source)])
        output, _ = model(source[None], lengths, decoder[None])
    return output[0]


def convert(source: Path, out: Path) -> PreparedBart:
    dictionary = write_dictionary(out.parent / "dict.txt")
    return prepare_bart(out, BartRequest(dictionary, source), say=lambda line: None)


def test_hugging_face_by_a_plain_forward_pass(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    state = hugging_face_state(noisy_state())
    bart = convert(write_hugging_face(tmp_path / "hf", state), tmp_path / "bart")
    source = torch.cat([SOURCE[:3], torch.tensor([MASK]), SOURCE[3:]])
    expected = reference_logits(state, source, DECODER)
    found = logits(load_in_fairseq(bart, mask=True), source, DECODER)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    # A translation has no <mask>: fairseq drops the last row, and nothing else changes.
    found = logits(load_in_fairseq(bart, mask=False), SOURCE, DECODER)
    expected = reference_logits(state, SOURCE, DECODER)[:, :-1]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_every_position_has_its_row(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    state = hugging_face_state(noisy_state())
    bart = convert(write_hugging_face(tmp_path / "hf", state), tmp_path / "bart")
    positions = TINY_CONFIG["max_position_embeddings"]
    longest = torch.arange(4, 4 + positions)
    found = logits(load_in_fairseq(bart, mask=True), longest, longest)
    expected = reference_logits(state, longest, longest)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_hugging_face_by_transformers(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    transformers = pytest.importorskip("transformers")
    config = {name: value for name, value in TINY_CONFIG.items() if name != "model_type"}
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        expected = model(input_ids=SOURCE[None], decoder_input_ids=DECODER[None]).logits[0]
    model.save_pretrained(tmp_path / "hf")
    bart = convert(tmp_path / "hf", tmp_path / "bart")
    found = logits(load_in_fairseq(bart, mask=True), SOURCE, DECODER)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def fairseq_model(words: Any, state: dict[str, Tensor]) -> Any:
    """Build a BART in fairseq itself and give it a state."""
    from fairseq.models.bart.model import BARTModel, bart_large_architecture

    args = Namespace(**{name.replace("-", "_"): value for name, value in TINY.items()})
    args.task = "translation"
    bart_large_architecture(args)
    model = BARTModel.build_model(args, toy_task(words))
    model.register_classification_head("sentiment", num_classes=2)
    args.arch = "bart_large"
    model.load_state_dict({**model.state_dict(), **state}, strict=True)
    return model.eval(), args


def old_checkpoint(state: dict[str, Tensor], args: Namespace) -> dict[str, Any]:
    """As bart.large is distributed: args, version buffers, no output projection."""
    model = {n: v for n, v in state.items() if n != "decoder.output_projection.weight"}
    model |= {f"{side}.version": torch.tensor([3.0]) for side in ("encoder", "decoder")}
    return {"args": args, "model": model, "optimizer_history": [], "extra_state": {}}


def new_checkpoint(state: dict[str, Tensor], args: Namespace) -> dict[str, Any]:
    """As fairseq 0.12 writes it."""
    cfg = {"_name": None, "model": args, "common": {"seed": 1}}
    return {"args": None, "cfg": cfg, "model": state, "last_optimizer_state": {"step": 1}}


@pytest.mark.parametrize("written", [old_checkpoint, new_checkpoint])
@pytest.mark.parametrize("half", [False, True])
def test_fairseq(tmp_path: Path, written: Any, half: bool) -> None:
    from fairseq.data import Dictionary

    words = Dictionary.load(str(write_dictionary(tmp_path / "words.txt")))
    words.add_symbol("<mask>")
    model, args = fairseq_model(words, noisy_state())
    state = model.state_dict()
    if half:
        state = {name: value.half() for name, value in state.items()}
        model.load_state_dict(state)
    torch.save(written(state, args), tmp_path / "model.pt")
    bart = convert(tmp_path / "model.pt", tmp_path / "bart")
    found = logits(load_in_fairseq(bart, mask=True), SOURCE, DECODER)
    torch.testing.assert_close(found, logits(model, SOURCE, DECODER), atol=TOLERANCE, rtol=0)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    state = hugging_face_state(noisy_state())
    bart = convert(write_hugging_face(tmp_path / "hf", state), tmp_path / "bart")
    model = load_in_fairseq(bart, mask=True)
    padded = torch.cat([torch.tensor([1, 1, 1]), SOURCE])
    expected = reference_logits(state, SOURCE, DECODER)
    torch.testing.assert_close(logits(model, padded, DECODER), expected, atol=TOLERANCE, rtol=0)
