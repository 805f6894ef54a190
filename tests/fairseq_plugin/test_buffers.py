"""Buffers that a forward pass changes move once in an update, as with plain training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits, copies

pytestmark = pytest.mark.fairseq

SPECTRAL = ("--spectral-norm-classification-head", "--sam-inner", "sgd")
METHODS = {
    "sam": ("--sam-method", "sam"),
    "delta_sam": ("--sam-method", "delta_sam"),
    "micro": ("--sam-method", "delta_sam", "--sam-scope", "micro"),
    "per_instance": ("--sam-method", "per_instance"),
    "loop": ("--sam-method", "per_instance", "--sam-per-instance-engine", "loop"),
}
every_method = pytest.mark.parametrize("method", METHODS)


class Statistics(nn.Module):
    """Count calls and follow the mean of what passes, as BatchNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.mean: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.mean.lerp_(x.detach().mean().to(self.mean.dtype), 0.1)
        return x


def trained(
    data: Path,
    *flags: str,
    updates: int = 2,
    freq: int = 2,
    layer: Callable[[], nn.Module] = Statistics,
) -> tuple[Any, dict[str, Tensor]]:
    """Train with some micro-batches an update; return the trainer and the model's buffers."""
    trainer = toys.make_trainer(data, *toys.PREDICTION, "--dropout", "0.2", *flags)
    model = trainer.get_model()
    head = model.classification_heads["sentence_classification_head"]
    kind = head.dense.weight.dtype
    head.dense = nn.Sequential(head.dense, layer().to(kind))
    batches = toys.batches(trainer)
    toys.updates(trainer, [batches[freq * i : freq * (i + 1)] for i in range(updates)])
    return trainer, copies(toys.used(dict(model.named_buffers())))


@every_method
def test_buffers_end_where_plain_training_leaves_them(prediction: Path, method: str) -> None:
    rest = ("--lr", "0", *SPECTRAL)
    # A second micro-batch has the dropout that comes after the first one's sentences alone.
    freq = 1 if method in {"per_instance", "loop"} else 2
    _, plain = trained(prediction, "--sam-method", "none", *rest, freq=freq)
    _, found = trained(prediction, *METHODS[method], "--sam-rho", "0.5", *rest, freq=freq)
    name = "classification_heads.sentence_classification_head.dense.1.calls"
    assert plain[name] == 2 * freq
    assert any(name.endswith("weight_u") for name in plain)
    assert_same_bits(found, plain)


@pytest.mark.parametrize("method", ["sam", "delta_sam", "micro"])
def test_so_do_those_that_the_graph_of_a_pass_holds_on_to(prediction: Path, method: str) -> None:
    rest = ("--lr", "0", "--sam-inner", "sgd")
    found = [
        trained(prediction, *flags, *rest, layer=lambda: nn.BatchNorm1d(16))[1]
        for flags in (("--sam-method", "none"), METHODS[method])
    ]
    assert any(name.endswith("running_var") for name in found[0])
    assert_same_bits(found[1], found[0])


@every_method
def test_a_tiny_radius_is_plain_training_under_spectral_norm(prediction: Path, method: str) -> None:
    rest = ("--dropout", "0", "--attention-dropout", "0", "--lr", "0.1", *SPECTRAL)
    plain, _ = trained(prediction, "--sam-method", "none", *rest, updates=3)
    found, _ = trained(prediction, *METHODS[method], "--sam-rho", "1e-12", *rest, updates=3)
    assert_close(toys.parameters(found), toys.parameters(plain), rtol=1e-5, atol=2e-7)


def test_the_probes_of_half_precision_leave_buffers_alone(
    prediction: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.precision_without_gpu(monkeypatch)
    rest = ("--lr", "0", "--fp16", "--fp16-no-flatten-grads", "--sam-inner", "sgd")
    _, plain = trained(prediction, "--sam-method", "none", *rest)
    _, found = trained(prediction, "--sam-method", "delta_sam", *rest)
    assert_same_bits(found, plain)


def test_parameters_that_are_not_the_optimizers_get_the_descents_gradient(
    prediction: Path,
) -> None:
    gradients = []
    for method in ("none", "sam"):
        trainer = toys.make_trainer(
            prediction, *toys.PREDICTION, "--sam-method", method, "--sam-rho", "1e-12"
        )
        weight = trainer.get_model().encoder.sentence_encoder.embed_tokens.weight
        weight.requires_grad_(False)
        trainer.optimizer  # noqa: B018  (built without the embedding)
        weight.requires_grad_(True)
        toys.updates(trainer, [toys.batches(trainer)[:1]])
        gradients.append(weight.grad)
    assert_close([gradients[1]], [gradients[0]], rtol=1e-4, atol=1e-6)
