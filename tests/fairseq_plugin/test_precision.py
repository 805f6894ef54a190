"""Half precision: the masters are perturbed, the scale cancels, an overflow skips the update."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.core import precision
from deltasam_fairseq.core.precision import is_full_precision
from deltasam_fairseq.fairseq_plugin import hook
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.sharpness import run
from deltasam_fairseq.fairseq_plugin.sharpness.model_weights import ModelWeights, in_float
from tests.fairseq_plugin.precision import MODES, WITH_MASTERS, displacement
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits

PERTURBED = ("sam", "delta_sam", "per_instance")


pytestmark = pytest.mark.usefixtures("device")


def trainer_of(data: Path, mode: str, *flags: str, inner: str = "sgd") -> Trainer:
    if mode.startswith("memory"):
        inner = "adam"  # sgd does without float32 gradients, so fairseq refuses it
    return toys.make_trainer(
        data,
        *(*toys.TRANSLATION, "--dropout", "0", "--sam-inner", inner, "--lr", "0.1"),
        *(*MODES[mode], *flags),
    )


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy the parameters, and the masters where there are some."""
    copies = toys.parameters(trainer)
    masters = hook._runs[trainer].weights.space.masters or []
    return {**copies, **{f"master {i}": m.detach().clone() for i, m in enumerate(masters)}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", PERTURBED)
def test_weights_masters_and_storage_come_back(translation: Path, method: str, mode: str) -> None:
    trainer = trainer_of(translation, mode, "--sam-method", method, "--lr", "0", inner="adam")
    samples = toys.batches(trainer)
    _ = trainer.optimizer
    before = weights_of(trainer)
    pointers = [p.data_ptr() for p in trainer.get_model().parameters()]
    kinds = {p.dtype for p in trainer.get_model().parameters()}
    toys.updates(trainer, [samples[:2], samples[2:3]])
    assert trainer.get_num_updates() == 2
    after = weights_of(trainer)
    assert_same_bits(after, before)
    assert [p.data_ptr() for p in trainer.get_model().parameters()] == pointers
    assert {p.dtype for p in trainer.get_model().parameters()} == kinds


@pytest.mark.parametrize("mode", WITH_MASTERS)
def test_the_model_computes_at_the_cast_of_the_perturbed_masters(
    translation: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    trainer = trainer_of(translation, mode, "--sam-method", "sam")
    sample = toys.batches(trainer)[:1]
    _ = trainer.optimizer
    space = hook._runs[trainer].weights.space
    assert space.masters is not None
    before = [m.detach().clone() for m in space.masters]
    seen: list[list[torch.Tensor]] = []
    gradients: list[list[torch.Tensor]] = []
    model, steepest = trainer.get_model(), space.steepest_unread
    model.register_forward_pre_hook(lambda *_: seen.append([p.detach().clone() for p in space]))

    def recorded(found: Sequence[Any]) -> Any:
        # fairseq 0.12.2 has parameters that training never uses.
        gradients.append([torch.zeros(1) if g is None else g.float() for g in found])
        return steepest(found)

    monkeypatch.setattr(space, "steepest_unread", recorded)
    trainer.train_step(sample)
    at, there = seen
    (ascent,) = gradients
    norm = torch.cat([g.flatten() for g in ascent]).double().norm()
    for master, gradient, w, moved in zip(before, ascent, at, there, strict=True):
        assert torch.equal(w, master.to(w.dtype))
        expected = (master.double() + 0.05 * gradient.double() / norm).to(moved.dtype)
        # A sum that falls between two half-precision numbers may be rounded either way.
        torch.testing.assert_close(moved, expected, rtol=2**-7, atol=1e-7)
        assert (moved == expected).float().mean() > 0.999


@pytest.mark.parametrize("method", PERTURBED)
@pytest.mark.parametrize("mode", ["fp16", "fp16, flat", "amp"])
def test_the_loss_scale_cancels(translation: Path, mode: str, method: str) -> None:
    logs = []
    for scale in ("4", "128"):
        trainer = trainer_of(
            translation, mode, "--sam-method", method, "--fp16-init-scale", scale, inner="adam"
        )
        logs.append(toys.updates(trainer, [toys.batches(trainer)[:2]])[0])
    weighed = ("sam_ess",) if method == "delta_sam" else ()
    for meter in ("sam_gnorm", "sam_loss", "sharpness", *weighed):
        assert logs[0][meter] == pytest.approx(logs[1][meter], rel=2e-2), meter


@pytest.mark.parametrize("failing_pass", [1, 2])
@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("mode", ["fp16", "fp16, flat", "memory-efficient fp16"])
def test_an_overflow_in_either_pass_lowers_the_scale_and_skips_the_update(
    translation: Path, mode: str, scope: str, failing_pass: int
) -> None:
    trainer = trainer_of(
        translation, mode, "--sam-method", "sam", "--sam-scope", scope, inner="adam"
    )
    samples = toys.batches(trainer)
    toys.updates(trainer, [samples[:1]])
    before = weights_of(trainer)
    state = [dict(s) for s in trainer.optimizer.optimizer.state.values()]
    calls = toys.break_forward(trainer, failing_pass, by=torch.inf)
    trainer.train_step(samples[1:2])
    assert len(calls) == 2
    assert trainer.get_num_updates() == 1, "the update was not skipped"
    assert trainer.optimizer.scaler.loss_scale == 64
    assert_same_bits(weights_of(trainer), before)
    assert [dict(s) for s in trainer.optimizer.optimizer.state.values()] == state
    trainer.train_step(samples[1:2])
    assert trainer.get_num_updates() == 2


@pytest.mark.parametrize("failing_pass", [1, 2])
def test_amp_tries_an_overflowing_batch_again(
    translation: Path, failing_pass: int, device: torch.device
) -> None:
    """Its trainer calls itself for that, from inside our stand-ins."""
    ends, logs = [], []
    for fails in (False, True):
        # fairseq divides by the scale twice here, so that Adam's epsilon would tell.
        trainer = trainer_of(
            translation, "amp", "--sam-method", "sam", "--adam-eps", "1e-30", inner="adam"
        )
        samples = toys.batches(trainer)
        calls = toys.break_forward(trainer, failing_pass if fails else 0, by=torch.inf)
        logs += toys.updates(trainer, [samples[:1]])
        assert len(calls) == (4 if fails else 2)
        assert trainer.get_num_updates() == 1
        assert trainer.optimizer.scaler.get_scale() == (64 if fails else 128)
        ends.append(toys.parameters(trainer))
    assert logs[0].keys() == logs[1].keys()
    for meter in ("loss", "sam_loss", "sam_gnorm"):
        assert logs[1][meter] == pytest.approx(logs[0][meter], rel=1e-5)
    if device.type == "cuda":
        return  # half the scale loses other gradients, whose steps Adam makes as long as any
    assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-4)


def test_unusable_weights_under_a_loss_scale_are_sam_and_no_overflow(
    translation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltasam_fairseq.core.estimators import ESTIMATORS, Weights

    def nan(losses_function: Any, params: Any, **settings: Any) -> Callable[..., Weights]:
        return lambda losses: Weights(
            torch.full_like(losses, float("nan"), dtype=torch.float64).detach(), torch.zeros(())
        )

    monkeypatch.setitem(ESTIMATORS._entries, "nan", nan)
    trainer = trainer_of(translation, "fp16", "--sam-estimator", "nan")
    logs = toys.updates(trainer, [toys.batches(trainer)[:2]])
    assert trainer.get_num_updates() == 1
    assert trainer.optimizer.scaler.loss_scale == 128
    assert logs[0]["sam_fallback"] == 1


@pytest.mark.parametrize("value", [1e-12, 1e12])
def test_weights_of_any_size_fit_into_half_precision(
    translation: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Only ratios matter, but 1e-12 times a gradient is zero in fp16 and 1e12 infinite."""
    from deltasam_fairseq.core.estimators import ESTIMATORS, Weights

    calls: list[int] = []

    def growing(losses_function: Any, params: Any, **settings: Any) -> Callable[..., Weights]:
        calls.append(1)
        factor = value * 10.0 ** len(calls)  # the second micro-batch has the larger weights
        return lambda losses: Weights(
            torch.full_like(losses, factor, dtype=torch.float64).detach(), torch.zeros(())
        )

    monkeypatch.setitem(ESTIMATORS._entries, "growing", growing)
    logs = []
    for mode in ("fp32", "fp16"):
        calls.clear()
        trainer = trainer_of(translation, mode, "--sam-estimator", "growing")
        logs += toys.updates(trainer, [toys.batches(trainer)[:2]])
        assert trainer.get_num_updates() == 1
        assert logs[-1]["sam_fallback"] == 0
    for meter in ("sam_gnorm", "sam_ess", "sam_loss"):
        assert logs[1][meter] == pytest.approx(logs[0][meter], rel=1e-2), meter


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("asked", ["fp32", "model"])
def test_probes_run_in_float32_where_there_are_float32_weights(
    translation: Path, mode: str, asked: str
) -> None:
    trainer = trainer_of(translation, mode, "--sam-probe-precision", asked)
    samples = toys.batches(trainer)
    trainer.train_step(samples[:1])
    seen: list[tuple[bool, bool, torch.dtype]] = []
    model = trainer.get_model()

    def look(module: Any, inputs: Any, output: Any) -> None:
        full = is_full_precision(list(module.parameters()))
        seen.append((torch.is_grad_enabled(), full, output[0].dtype))

    model.register_forward_hook(look)
    trainer.train_step(samples[1:2])
    probes = [(full, kind) for graph, full, kind in seen if not graph]
    passes = [full for graph, full, _ in seen if graph]
    memory_efficient = mode.startswith("memory")
    if mode == "fp32":
        assert probes == [(True, torch.float32)] * 2
    elif asked == "fp32" and not memory_efficient:
        # l(w) as well: a difference between two precisions would be rounding.
        assert probes == [(True, torch.float32)] * 3
    else:
        assert [full for full, _ in probes] == [False] * 2
    assert passes == [mode == "fp32"] * 2


@pytest.mark.parametrize("mode", ["fp16", "fp16, flat", "amp"])
def test_weights_of_full_precision_probes_are_those_of_a_full_precision_run(
    translation: Path, mode: str
) -> None:
    found = []
    # Sinusoids are rounded by the first half-precision pass, for good. A large
    # radius, because at 0.05 even the order of float32 sums shows.
    flags = ("--encoder-learned-pos", "--decoder-learned-pos", "--sam-rho", "1")
    for used in ("fp32", mode):
        trainer = trainer_of(translation, used, *flags)
        if used == "fp32" and mode != "amp":
            for param in trainer.get_model().parameters():
                param.data = param.data.half().float()
        (log,) = toys.updates(trainer, [toys.batches(trainer)[:1]])
        found.append(log["sam_ess"])
    assert found[0] == pytest.approx(found[1], rel=5e-4)


def test_probes_switch_tf32_off_and_other_passes_do_not(
    translation: Path, device: torch.device, request: pytest.FixtureRequest
) -> None:
    place, switch, full = precision._tf32_switches()[0]
    before = getattr(place, switch)
    request.addfinalizer(lambda: setattr(place, switch, before))
    found = []
    for allowed in (full, True if full is False else "tf32"):
        setattr(place, switch, allowed)
        # A large radius, because at 0.05 even the order of float32 sums shows.
        trainer = trainer_of(translation, "fp32", "--sam-rho", "1")
        samples = toys.batches(trainer)
        toys.updates(trainer, [samples[:1]])
        seen: list[tuple[bool, Any]] = []

        def look(*_: Any, seen: list[tuple[bool, Any]] = seen) -> None:
            seen.append((torch.is_grad_enabled(), getattr(place, switch)))

        trainer.get_model().register_forward_hook(look)
        (log,) = toys.updates(trainer, [samples[1:2]])
        found.append(log["sam_ess"])
        assert getattr(place, switch) == allowed
        assert [now for graph, now in seen if graph] == [allowed] * 2
        probes = [now for graph, now in seen if not graph]
        # With TF32 l(w) needs a pass of its own. A CPU has none, and nothing to switch off.
        if device.type == "cuda" and allowed != full:
            assert probes == [full] * 3
        else:
            assert probes == [allowed] * 2
    # The second update starts at weights to which TF32 has led.
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_everything_that_a_half_precision_model_computes_with_becomes_float32() -> None:
    """Parameters by their masters, frozen ones and buffers by copies; all come back."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)
            self.frozen = torch.nn.Parameter(torch.randn(3, 3), requires_grad=False)
            self.register_buffer("mixing", torch.randn(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) @ self.frozen @ self.mixing

    model = Model().half()
    params = list(model.layer.parameters())
    masters = [p.detach().float() + 1e-5 for p in params]
    optimizer = Namespace(fp16_params=params, fp32_params=masters)
    weights = ModelWeights(optimizer, Sharpness("sam"), model, torch.nn.Module())
    before = {name: t for name, t in [*model.named_parameters(), *model.named_buffers()]}
    x = torch.randn(2, 3)
    with weights.in_full():
        found = model(x)
    twin = x @ masters[0].T + masters[1]
    twin = twin @ before["frozen"].float() @ before["mixing"].float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, twin)
    after = {name: t for name, t in [*model.named_parameters(), *model.named_buffers()]}
    assert all(after[name] is tensor for name, tensor in before.items())


def test_sentences_in_half_precision_are_brought_to_float32() -> None:
    sample: Any = {
        "target": torch.ones(2, dtype=torch.bfloat16),
        "net_input": {"src_tokens": torch.ones(2, dtype=torch.int64), "x": [torch.ones(1).half()]},
        "pair": (torch.ones(1).half(), 3),
        "id": None,
    }
    converted = in_float(sample)
    assert converted["target"].dtype == torch.float32
    assert converted["net_input"]["x"][0].dtype == torch.float32
    assert converted["pair"][0].dtype == torch.float32
    assert converted["pair"][1] == 3
    assert converted["net_input"]["src_tokens"] is sample["net_input"]["src_tokens"]
    assert sample["target"].dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["fp16", "memory-efficient fp16"])
def test_what_rounding_leaves_is_logged_now_and_then_and_warned_about_once(
    translation: Path, mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MEASURE_EVERY", 2)
    trainer = trainer_of(
        translation, mode, "--sam-method", "sam", "--sam-rho", "1e-4", inner="adam"
    )
    with caplog.at_level(logging.WARNING, logger=run.__name__):
        logs = toys.updates(trainer, [[s] for s in toys.batches(trainer)[:4]])
    assert ["sam_realised" in log for log in logs] == [True, False, True, False]
    for log in logs[::2]:
        # 1e-4 over 7,000 weights: most of it below the spacing of fp16.
        assert log["sam_realised_cos"] < 0.5
    # Once masters have left the grid, a few weights jump by a whole spacing instead.
    assert (logs[2]["sam_realised"] > 1) == (mode == "fp16")
    (warning,) = [r.getMessage() for r in caplog.records if r.name == run.__name__]
    assert "too coarse for --sam-rho 0.0001" in warning
    assert "--amp or in fp32" in warning


def test_the_first_perturbation_is_measured_whatever_the_schedule() -> None:
    settings = Sharpness("sam", start_update=1, interval=2)
    measured = [
        u for u in range(600) if settings.perturbs(u) and settings.perturbation(u) % 100 == 0
    ]
    assert measured == [1, 201, 401]


def test_estimators_run_no_passes_for_weights(
    translation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they return gets detached losses, in every precision alike."""
    from deltasam_fairseq.core.estimators import ESTIMATORS, Weights

    seen: list[bool] = []

    def looking(losses_function: Any, params: Any, **settings: Any) -> Callable[..., Weights]:
        def weigh(losses: torch.Tensor) -> Weights:
            seen.append(losses.requires_grad)
            return Weights(torch.ones_like(losses, dtype=torch.float64), torch.zeros(()))

        return weigh

    monkeypatch.setitem(ESTIMATORS._entries, "looking", looking)
    for mode in ("fp32", "fp16", "amp"):
        trainer = trainer_of(translation, mode, "--sam-estimator", "looking")
        trainer.train_step(toys.batches(trainer)[:1])
    assert seen == [False] * 3


@pytest.mark.parametrize("mode", ["fp32", "fp16", "memory-efficient bf16"])
@pytest.mark.parametrize("asked", ["fp32", "model"])
def test_weights_from_half_precision_are_warned_of(
    translation: Path, caplog: pytest.LogCaptureFixture, mode: str, asked: str
) -> None:
    with caplog.at_level(logging.WARNING, logger=run.__name__):
        _ = trainer_of(translation, mode, "--sam-probe-precision", asked).optimizer
    coarse = mode.startswith("memory") or (mode == "fp16" and asked == "model")
    found = [r.getMessage() for r in caplog.records if r.name == run.__name__]
    assert len(found) == coarse
    assert all("mostly rounding" in text for text in found)


def test_single_precision_realises_the_whole_perturbation(
    translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(translation, "fp32", "--sam-rho", "0.01")
    with caplog.at_level(logging.WARNING, logger=run.__name__):
        (log,) = toys.updates(trainer, [toys.batches(trainer)[:1]])
    assert log["sam_realised"] == pytest.approx(1.0, abs=1e-3)
    assert log["sam_realised_cos"] == pytest.approx(1.0, abs=1e-3)
    assert not [r for r in caplog.records if r.name == run.__name__]


@pytest.mark.parametrize("mode", ["fp16", "bf16", "amp"])
def test_a_regression_target_in_half_precision(regression: Path, mode: str) -> None:
    trainer = toys.make_trainer(
        regression,
        *(*toys.PREDICTION, "--regression-target", "--num-classes", "1", *MODES[mode]),
    )
    logs = toys.updates(trainer, [[s] for s in toys.batches(trainer)[:2]])
    assert all(log["sam_fallback"] == 0 for log in logs)
    assert displacement(trainer) > 0
