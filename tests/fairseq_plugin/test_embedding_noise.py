"""The one door for noise on the embeddings."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.distributed import ModuleProxyWrapper
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.fairseq_plugin.embedding_noise import (
    embedding_noise,
    embeddings_shape,
    encoder_of,
)
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits

BART = [*toys.TRANSLATION, "--arch", "bart_base"]
HEAD = {"features_only": True, "classification_head_name": "sentence_classification_head"}
MODELS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "transformer": ("translation", toys.TRANSLATION, {}),
    "bart": ("translation", BART, {}),
    "roberta": ("prediction", toys.PREDICTION, HEAD),
    "bert": ("prediction", toys.BERT, HEAD),
}


class Case:
    """A model with a padded batch."""

    def __init__(self, data: Path, flags: list[str], extra: dict[str, Any]) -> None:
        trainer = toys.make_trainer(data, *flags)
        sample = toys.sentences(trainer, range(6))
        self.model = trainer.get_model().eval()
        self.inputs = {**sample["net_input"], **extra}
        self.tokens = self.inputs["src_tokens"]
        self.pads = self.tokens.eq(trainer.task.source_dictionary.pad())
        assert self.pads.any()

    def logits(self, model: Any = None) -> torch.Tensor:
        found: torch.Tensor = (model or self.model)(**self.inputs)[0]
        return found

    def noise(self) -> torch.Tensor:
        return torch.randn(embeddings_shape(self.model, self.tokens), requires_grad=True)


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    data, flags, extra = MODELS[request.param]
    return Case(request.getfixturevalue(data), flags, extra)


@pytest.fixture(params=["transformer", "bart"])
def with_decoder(request: pytest.FixtureRequest) -> Case:
    data, flags, extra = MODELS[request.param]
    return Case(request.getfixturevalue(data), flags, extra)


def test_noise_reaches_the_logits_and_leaves_nothing_behind(case: Case) -> None:
    before = case.logits()
    noise = case.noise()
    with embedding_noise(case.model, noise):
        moved = case.logits()
    assert not torch.allclose(moved, before, atol=1e-3)
    assert torch.equal(case.logits(), before)
    assert "forward_embedding" not in vars(encoder_of(case.model))
    (gradient,) = torch.autograd.grad(moved.square().sum(), noise)
    assert gradient[~case.pads].abs().sum(-1).gt(0).all()
    assert torch.equal(gradient[case.pads], torch.zeros_like(gradient[case.pads]))


def test_it_goes_after_an_exception(case: Case) -> None:
    before = case.logits()
    with pytest.raises(KeyError), embedding_noise(case.model, case.noise()):
        raise KeyError
    assert "forward_embedding" not in vars(encoder_of(case.model))
    assert torch.equal(case.logits(), before)


def test_noise_of_zero_changes_no_bit(case: Case) -> None:
    """In training: dropout's draws are the same ones, and so are the gradients."""
    case.model.train()
    found = []
    for noise in (None, torch.zeros(embeddings_shape(case.model, case.tokens))):
        torch.manual_seed(1)
        case.model.zero_grad()
        if noise is None:
            logits = case.logits()
        else:
            with embedding_noise(case.model, noise):
                logits = case.logits()
        logits.square().sum().backward()
        grads = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
        found.append({"logits": logits.detach(), **{n: g.clone() for n, g in grads.items()}})
    assert found[0].keys() == found[1].keys()
    assert_same_bits(found[1], found[0])


def test_the_decoder_is_left_clean(with_decoder: Case) -> None:
    """Encoder and decoder share one table of embeddings."""
    model, seen = with_decoder.model, []
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    model.decoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with_decoder.logits()
    with embedding_noise(model, with_decoder.noise()):
        with_decoder.logits()
    assert torch.equal(seen[0], seen[1])


def test_noises_add_up(case: Case) -> None:
    one, two = case.noise(), case.noise()
    with embedding_noise(case.model, one + two):
        together = case.logits()
    with embedding_noise(case.model, one), embedding_noise(case.model, two):
        nested = case.logits()
    torch.testing.assert_close(nested, together, rtol=1e-4, atol=1e-4)
    assert "forward_embedding" not in vars(encoder_of(case.model))


def test_the_sum_is_rounded_once(prediction: Path) -> None:
    """Noise below the spacing of the model's precision counts where it crosses half of it."""
    case = Case(prediction, *MODELS["roberta"][1:])
    model = case.model.to(torch.bfloat16)
    encoder = encoder_of(model)
    noise = case.noise().detach() * 1e-3
    with embedding_noise(model, noise):
        _, found = encoder.forward_embedding(case.tokens)
    exact = encoder.embed_tokens(case.tokens).float() + noise * ~case.pads.unsqueeze(-1)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.to(torch.bfloat16))


@pytest.fixture
def one_worker() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=1, rank=0)
    yield
    distributed.destroy_process_group()


def test_it_works_through_wrappers_for_several_workers(case: Case, one_worker: None) -> None:
    wrapped = DistributedDataParallel(case.model, find_unused_parameters=True)
    noise = case.noise()
    with embedding_noise(case.model, noise):
        expected = case.logits()
    for model in (wrapped, ModuleProxyWrapper(wrapped)):
        with embedding_noise(model, noise):
            found = case.logits(model)
        assert torch.equal(found, expected)
        (gradient,) = torch.autograd.grad(found.sum(), noise)
        assert gradient.abs().sum() > 0
        assert "forward_embedding" not in vars(encoder_of(model))


def test_models_without_such_an_encoder_are_refused(translation: Path) -> None:
    model = toys.make_trainer(translation, *toys.LSTM).get_model()
    with (
        pytest.raises(ValueError, match="LSTMModel has LSTMEncoder; use a model such as roberta"),
        embedding_noise(model, torch.zeros(1)),
    ):
        pass


def test_noise_of_another_shape_is_refused(translation: Path) -> None:
    case = Case(translation, *MODELS["transformer"][1:])
    with (
        pytest.raises(ValueError, match="the noise has shape .*make it with embeddings_shape"),
        embedding_noise(case.model, case.noise()[:1]),
    ):
        case.logits()
