"""The plugin's step against the slow twin, its reductions, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.core import reference
from deltasam_fairseq.core.estimators import ESTIMATORS, Weights
from deltasam_fairseq.core.noise import seed_for
from tests.fairseq_plugin.twins import direction, losses_at
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits

METHODS = ("none", "sam", "delta_sam", "per_instance")
SGD = ("--sam-inner", "sgd", "--lr", "0.5")


def constant(value: float) -> Any:
    """Return an estimator whose weights are all the same."""

    def estimator(losses_function: Any, params: Any, **settings: Any) -> Callable[..., Weights]:
        return lambda losses: Weights(
            torch.full_like(losses, value, dtype=torch.float64).detach(), torch.zeros(())
        )

    return estimator


CONSTANT = {"zeros": 0.0, "not_finite": float("nan"), "ones": 1.0, "large": 7.3}


@pytest.fixture(autouse=True)
def constant_estimators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register estimators for a test, and none of them for the tests after it."""
    for name, value in CONSTANT.items():
        monkeypatch.setitem(ESTIMATORS._entries, name, constant(value))


def expected_gradient(
    trainer: Trainer, method: str, samples: Sequence[Any], seed: int
) -> list[torch.Tensor]:
    """Return the gradient that the inner optimizer should see, from the slow twin."""
    at = list(toys.parameters(trainer).values())
    losses = losses_at(trainer, samples)
    if method == "none":
        mean = reference.plain_gradient(losses, at)
    elif method == "sam":
        mean = reference.sam_gradient(losses, at, rho=0.05)
    elif method == "per_instance":
        mean = reference.per_instance_gradient(losses, at, rho=0.05)
    else:
        plain = reference.plain_gradient(losses, at)
        noise = direction(at, plain, radius=0.05, seed=seed)
        mean = reference.delta_sam_gradient(losses, at, noise, rho=0.05, eta=1e-4)
    sentences = sum(s["nsentences"] for s in samples)
    tokens = sum(s["ntokens"] for s in samples)
    return [g * sentences / tokens for g in mean]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("freq", [1, 2])
def test_equals_the_slow_twin_in_float64(
    translation: Path, float64: torch.dtype, method: str, freq: int, device: torch.device
) -> None:
    trainer = toys.make_trainer(
        translation, *toys.PRECISE, *SGD, "--sam-method", method, dtype=float64
    )
    samples = toys.batches(trainer)
    for update in range(2):
        group = samples[update * freq : (update + 1) * freq]
        before = toys.parameters(trainer)
        there = [toys.on_device(sample, device) for sample in group]
        gradient = expected_gradient(trainer, method, there, seed_for(3, update))
        trainer.train_step(group)
        for (name, value), step in zip(toys.parameters(trainer).items(), gradient, strict=True):
            torch.testing.assert_close(
                value, before[name] - 0.5 * step, rtol=1e-8, atol=1e-10, msg=name
            )


def test_scope_micro_equals_its_own_twin(translation: Path, float64: torch.dtype) -> None:
    trainer = toys.make_trainer(
        translation, *toys.PRECISE, *SGD, "--sam-scope", "micro", dtype=float64
    )
    group = toys.batches(trainer)[:3]
    before = toys.parameters(trainer)
    tokens = sum(s["ntokens"] for s in group)
    total = [torch.zeros_like(p) for p in before.values()]
    for position, sample in enumerate(group):
        seed = seed_for(seed_for(3, 0), position)
        own = expected_gradient(trainer, "delta_sam", [sample], seed)
        total = [t + g * sample["ntokens"] / tokens for t, g in zip(total, own, strict=True)]
    trainer.train_step(group)
    for (name, value), step in zip(toys.parameters(trainer).items(), total, strict=True):
        torch.testing.assert_close(value, before[name] - 0.5 * step, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_an_update_does_not_depend_on_how_it_is_split(
    translation: Path, float64: torch.dtype, method: str
) -> None:
    ends = []
    for size, freq in ((8, 1), (4, 2), (2, 4)):
        trainer = toys.make_trainer(
            translation,
            *toys.PRECISE,
            *("--sam-method", method, "--batch-size", str(size), *SGD),
            *("--lr", "0.05"),
            dtype=float64,
        )
        # Sentences in the same order, whatever the batch size.
        parts = [
            toys.sentences(trainer, range(start, start + size)) for start in range(0, 40, size)
        ]
        for update in range(5):
            trainer.train_step(parts[update * freq : (update + 1) * freq])
        ends.append(toys.parameters(trainer))
    for other in ends[1:]:
        assert_close(other, ends[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("flags", [("--sam-rho", "0"), ("--sam-method", "none")])
def test_no_perturbation_is_the_inner_optimizer_bit_for_bit(
    translation: Path, flags: tuple[str, ...]
) -> None:
    ends = [
        toys.trained(translation, *toys.TRANSLATION, *optimizer, count=8)[0]
        for optimizer in (("--optimizer", "adam"), flags)
    ]
    assert_same_bits(*map(toys.parameters, ends))


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_a_vanishing_radius_runs_all_passes_and_changes_nothing(
    translation: Path, method: str
) -> None:
    """With 1e-30 the ascent and its replayed dropout run, but no weight moves."""
    ends = []
    one = toys.make_trainer(translation, *toys.TRANSLATION, "--optimizer", "adam")
    # One sentence at a time: a batch's dropout is not that of its sentences alone.
    samples = [toys.sentences(one, [i]) for i in range(5)]
    # The loop, because the batched engine rounds in another order.
    ours = ("--sam-method", method, "--sam-rho", "1e-30", "--sam-per-instance-engine", "loop")
    for flags in (("--optimizer", "adam"), ours):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        toys.updates(trainer, [samples[:2], samples[2:4], samples[4:]])
        ends.append(toys.parameters(trainer))
    assert_same_bits(ends[0], ends[1])


def test_a_batch_of_one_is_sam_whatever_its_weight(translation: Path) -> None:
    ends = []
    for flags in (
        ("--sam-method", "sam"),
        ("--sam-method", "delta_sam"),
        ("--sam-method", "delta_sam", "--sam-estimator", "large"),
        # The batched engine rounds in another order; see test_instances.py.
        ("--sam-method", "per_instance", "--sam-per-instance-engine", "loop"),
    ):
        one = ("--batch-size", "1", *flags)
        trainer, _ = toys.trained(translation, *toys.TRANSLATION, *one, count=6)
        ends.append(toys.parameters(trainer))
    for other in ends[1:]:
        assert_same_bits(ends[0], other)


@pytest.mark.parametrize("estimator", ["ones", "uniform", "zeros", "not_finite"])
@pytest.mark.parametrize("freq", [1, 2])
def test_equal_and_unusable_weights_are_sam(translation: Path, estimator: str, freq: int) -> None:
    ends, logs = [], []
    for flags in (("--sam-method", "sam"), ("--sam-estimator", estimator)):
        trainer, logged = toys.trained(translation, *toys.TRANSLATION, *flags, count=4, freq=freq)
        logs.append(logged)
        ends.append(toys.parameters(trainer))
    # The reader sums a sentence's tokens first: same terms, other order.
    assert_close(ends[1], ends[0], rtol=2e-4, atol=2e-5)
    unusable = estimator in {"zeros", "not_finite"}
    assert [log["sam_fallback"] for log in logs[1]] == [float(unusable)] * 4
    assert [log["sam_ess"] for log in logs[1]] == pytest.approx([8.0 * freq] * 4)


def test_losses_that_are_not_finite_move_nothing(translation: Path) -> None:
    """The ascent gradient is NaN: weights stay, and the trainer's own check speaks."""
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-method", "delta_sam")
    sample = toys.batches(trainer)[0]
    with torch.no_grad():
        trainer.get_model().decoder.layers[0].fc1.bias[0] = float("nan")
    before = toys.parameters(trainer)
    trainer.save_checkpoint = lambda *a, **k: None
    with pytest.raises(FloatingPointError):
        trainer.train_step([sample])
    for name, value in toys.parameters(trainer).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize(("method", "passes"), [("sam", 4), ("delta_sam", 8), ("per_instance", 4)])
def test_weights_come_back_after_an_exception(
    translation: Path, method: str, passes: int, scope: str
) -> None:
    """In whichever pass of an update. The first update of delta_sam has one more before these."""
    trainer = toys.make_trainer(
        translation, *toys.TRANSLATION, "--sam-method", method, "--sam-scope", scope
    )
    group = toys.batches(trainer)[:2]
    before = toys.parameters(trainer)
    pointers = [p.data_ptr() for p in trainer.get_model().parameters()]
    saved: list[dict[str, torch.Tensor]] = []
    trainer.save_checkpoint = lambda *a, **k: saved.append(toys.parameters(trainer))
    for number in range(1, passes + 1):
        toys.break_forward(trainer, number, KeyError("broken on purpose"))
        with pytest.raises(KeyError, match="on purpose"):
            trainer.train_step(group)
        del trainer.get_model().forward
        assert_same_bits(toys.parameters(trainer), before)
        assert_same_bits(saved.pop(), before)  # what crash.pt holds
    assert [p.data_ptr() for p in trainer.get_model().parameters()] == pointers
    assert "train_step" not in vars(trainer.task)


def test_the_passes_of_a_step(translation: Path) -> None:
    """Two extra forward passes for delta-SAM, and dropout that is the same in all of them."""
    for method, engine, freq, expected in (
        ("none", "auto", 2, 2),
        ("sam", "auto", 2, 4),
        ("delta_sam", "auto", 2, 8),
        ("per_instance", "auto", 2, 4),
        ("per_instance", "loop", 1, 16),
    ):
        flags = ("--sam-method", method, "--sam-per-instance-engine", engine)
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        samples = toys.batches(trainer)
        trainer.train_step(samples[:1])
        count: list[int] = []
        trainer.get_model().register_forward_hook(lambda *_, count=count: count.append(1))
        trainer.train_step(samples[1 : 1 + freq])
        assert len(count) == expected, method


@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_every_pass_of_a_batch_sees_the_same_dropout(
    translation: Path, method: str, device: torch.device
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-method", method)
    samples = toys.batches(trainer)
    trainer.train_step(samples[:1])
    masks: list[torch.Tensor] = []
    dropout = trainer.get_model().encoder.dropout_module
    dropout.register_forward_hook(lambda _, x, y: masks.append(y[0] == 0) if y is not x else None)
    trainer.train_step(samples[1:3])
    assert masks and {mask.device.type for mask in masks} == {device.type}
    per_batch: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for mask in masks:
        per_batch.setdefault(tuple(mask.shape), []).append(mask)
    for same in per_batch.values():
        assert all(torch.equal(same[0], other) for other in same)


@pytest.mark.parametrize("method", METHODS[:3])
def test_random_state_ends_where_a_plain_update_leaves_it(
    translation: Path, method: str, device: torch.device
) -> None:
    states = []
    for used in ("none", method):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-method", used)
        trainer.train_step(toys.batches(trainer)[:2])
        states.append((torch.get_rng_state(), toys.random_state(device)))
    for of_one, of_the_other in zip(*states, strict=True):
        assert torch.equal(of_one, of_the_other)


def test_parameters_that_never_get_a_gradient_do_not_dilute_the_probe(prediction: Path) -> None:
    """RoBERTa's language-model head takes no part in classification."""
    trainer = toys.make_trainer(prediction, *toys.PREDICTION, "--sam-method", "delta_sam")
    trainer.train_step(toys.batches(trainer)[:1])
    from deltasam_fairseq.fairseq_plugin import hook

    found = hook._runs[trainer].covered.names()
    assert not any("lm_head.dense" in name for name in found)
    assert any("classification_heads" in name for name in found)
    assert len(found) > 20


def test_frozen_parameters_are_left_alone(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    trainer.get_model().encoder.requires_grad_(False)
    before = toys.parameters(trainer)
    toys.updates(trainer, [toys.batches(trainer)[:2]])
    after = toys.parameters(trainer)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert not any(n.startswith("encoder.layers") for n in moved)
