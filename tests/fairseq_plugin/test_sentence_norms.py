"""``--sam-norms``: the norms of the sentences' gradients, against a backward pass of each."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltasam_fairseq.fairseq_plugin.sharpness import sentence_norms
from deltasam_fairseq.fairseq_plugin.sharpness.samples import split_by_sentence
from deltasam_fairseq.per_instance import AmbiguousBatch
from tests.fairseq_plugin.precision import MODES
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits
from tests.support.workers import run_workers

METERS = ("sam_inorm", "sam_inorm_p90", "sam_inorm_max")
# The criterion of classes has its losses in float32.
EXACT = {"translation": 1e-9, "prediction": 1e-5}
PLAIN = ("--dropout", "0", "--attention-dropout", "0", "--sam-inner", "sgd", "--lr", "0.05")
DATA = {"translation": toys.PRECISE, "prediction": toys.PREDICTION}


def twin(trainer: Any, samples: list[Any], *, every_layer: bool = False) -> torch.Tensor:
    """Take the gradient of each sentence by itself, and the norm over the norm layers."""
    model, criterion = trainer.get_model().train(), trainer.get_criterion()
    layers = [m for m in model.modules() if every_layer or isinstance(m, nn.LayerNorm)]
    params = list({id(p): p for layer in layers for p in layer.parameters()}.values())
    norms = []
    for sample in samples:
        for piece in split_by_sentence(sample, criterion.padding_idx):
            loss, _, _ = criterion(model, piece)
            found = torch.autograd.grad(loss, params, allow_unused=True)
            norms.append(torch.cat([g.flatten() for g in found if g is not None]).norm())
    return torch.stack(norms)


def measured(trainer: Any, samples: list[Any]) -> list[float]:
    (log,) = toys.updates(trainer, [samples])
    return [log[name] for name in METERS]


def expected(norms: torch.Tensor) -> list[float]:
    return [float(norms.mean()), float(norms.quantile(0.9)), float(norms.max())]


@pytest.mark.parametrize("layers", ["layer_norms", "all"])
@pytest.mark.parametrize(
    "method",
    [
        "none",
        "sam",
        "sam --sam-groups 3",
        "sam --sam-groups 3 --sam-scope micro",
        # At w + eps; so near that it is w.
        "delta_sam --sam-rho 1e-12",
        "delta_sam --sam-estimator random --sam-groups 2 --sam-rho 1e-12",
        "delta_sam --sam-estimator gibbs --sam-scope micro --sam-rho 1e-12",
    ],
)
def test_it_is_the_loop_over_sentences(
    request: pytest.FixtureRequest, float64: torch.dtype, method: str, layers: str
) -> None:
    """With padding, two micro-batches, and layers in (N, T, C) and (T, N, C)."""
    flags = (*PLAIN, "--sam-method", *method.split(), "--sam-norms", layers)
    for name, toy in DATA.items():
        data: Path = request.getfixturevalue(name)
        trainer = toys.make_trainer(data, *toy, "--layernorm-embedding", *flags, dtype=float64)
        first, *others = toys.batches(trainer)[:5]
        toys.updates(trainer, [[sample] for sample in others])  # some have no 8 positions
        samples = [first, others[0]]
        norms = twin(trainer, samples, every_layer=layers == "all")
        assert measured(trainer, samples) == pytest.approx(expected(norms), rel=EXACT[name]), name


def test_per_instance_logs_those_of_all_layers_in_any_case(
    translation: Path, float64: torch.dtype
) -> None:
    flags = (*PLAIN, "--sam-method", "per_instance", "--sam-norms", "none")
    trainer = toys.make_trainer(translation, *toys.PRECISE, *flags, dtype=float64)
    samples = toys.batches(trainer)[:2]
    norms = twin(trainer, samples, every_layer=True)
    assert measured(trainer, samples) == pytest.approx(expected(norms), rel=1e-6)


@pytest.mark.parametrize("layers", ["layer_norms", "all"])
@pytest.mark.parametrize("method", ["none", "sam", "delta_sam"])
def test_measuring_changes_no_bit(translation: Path, method: str, layers: str) -> None:
    """With dropout, whose masks the engine's pass must not use up."""
    ends = []
    for kind in ("none", layers):
        flags = (*toys.TRANSLATION, "--sam-method", method, "--sam-norms", kind)
        trainer, logs = toys.trained(translation, *flags, count=2, freq=2)
        assert ["sam_inorm" in log for log in logs] == [kind != "none"] * 2
        ends.append(toys.parameters(trainer))
    assert_same_bits(ends[1], ends[0])


@pytest.mark.parametrize("mode", ["fp16", "bf16", "amp"])
@pytest.mark.parametrize("method", ["none", "sam"])
def test_half_precision_and_its_loss_scale(
    translation: Path, monkeypatch: pytest.MonkeyPatch, method: str, mode: str
) -> None:
    toys.precision_without_gpu(monkeypatch)
    found = []
    for used in ("fp32", mode):
        flags = (*PLAIN, "--sam-inner", "adam", "--sam-method", method, *MODES[used])
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        found.append(measured(trainer, toys.batches(trainer)[:2]))
    assert found[1] == pytest.approx(found[0], rel=0.02)


@pytest.mark.parametrize("method", ["none", "sam", "delta_sam"])
def test_a_batch_that_keeps_a_worker_in_step_counts_for_nothing(
    translation: Path, method: str
) -> None:
    found = []
    for empty in (0, 1):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *PLAIN, "--sam-method", method)
        samples = toys.batches(trainer)
        trainer.reset_dummy_batch(samples[1])
        found.append(measured(trainer, [samples[0], *[{}] * empty]))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_plain_updates_between_perturbed_ones_are_measured_too(translation: Path) -> None:
    flags = ("--sam-method", "sam", "--sam-interval", "2")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    logs = toys.updates(trainer, [[sample] for sample in toys.batches(trainer)[:2]])
    assert ["sam_gnorm" in log for log in logs] == [True, False]
    assert all(log["sam_inorm_max"] >= log["sam_inorm"] > 0 for log in logs)


REFUSED = {
    "two views in one batch": (
        "--criterion deltasam_label_smoothed_cross_entropy --regularizer rdrop",
        "does not tell whose rows are whose",
    ),
    "several passes": ("--freelb-steps 2", "FreeLB with 2 passes"),
}


@pytest.mark.parametrize("layers", ["layer_norms", "all"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_is_not_logged_and_said_once(
    translation: Path, caplog: pytest.LogCaptureFixture, case: str, layers: str
) -> None:
    flags, reason = REFUSED[case]
    trainer = toys.make_trainer(
        translation,
        *toys.TRANSLATION,
        *flags.split(),
        "--sam-method",
        "none",
        "--sam-norms",
        layers,
    )
    with caplog.at_level(logging.INFO, logger=sentence_norms.__name__):
        logs = toys.updates(trainer, [[sample] for sample in toys.batches(trainer)[:3]])
    said = [r.getMessage() for r in caplog.records if r.name == sentence_norms.__name__]
    last = said[-1] if said else ""
    if case == "two views in one batch" and layers == "all":
        assert not said  # the engine finds out whose rows are whose
        assert all(log["sam_inorm"] > 0 for log in logs)
        return
    assert last.startswith("the norms of the sentences' gradients are not logged: ")
    assert reason in last
    assert len(said) == len(set(said)) == (2 if layers == "all" else 1)
    assert not any(name in log for log in logs for name in METERS)


def test_as_many_sentences_as_positions_wait_for_a_batch_that_tells() -> None:
    layer = nn.LayerNorm(3)
    layers = sentence_norms.NormLayers(nn.Sequential(layer))
    seen: list[int | None] = []
    for shape in ((2, 2, 3), (5, 2, 3), (2, 2, 3)):
        with layers.watched(2) as watch:
            layer(torch.randn(shape)).square().sum().backward()
        try:
            seen.append(len(watch.norms()))
        except AmbiguousBatch:
            seen.append(None)
    assert seen == [None, 2, 2]


SHARES = (range(3), range(3, 8))


def in_workers(rank: int, count: int, port: int, data: Path) -> list[float]:
    init = toys.join_workers(data, toys.PRECISE, rank, count, port)
    trainer = toys.make_trainer(data, *toys.PRECISE, *PLAIN, "--sam-method", "sam", *init)
    return measured(trainer, [toys.sentences(trainer, SHARES[rank])])


@pytest.mark.multiprocess
@pytest.mark.usefixtures("float64")
def test_percentile_and_largest_are_means_over_workers(translation: Path, tmp_path: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.PRECISE, *PLAIN)
    each = [twin(trainer, [toys.sentences(trainer, rows)]) for rows in SHARES]
    of_each = torch.tensor([expected(norms) for norms in each]).mean(0)
    wanted = [float(torch.cat(each).mean()), *of_each[1:].tolist()]
    for found in run_workers(in_workers, 2, tmp_path, translation):
        assert found == pytest.approx(wanted, rel=1e-6)
    assert wanted != pytest.approx(expected(torch.cat(each)), rel=1e-3)
