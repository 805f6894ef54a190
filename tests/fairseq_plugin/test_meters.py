"""What is logged: the loss at w as without the plugin, and the plugin's own meters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fairseq.logging import metrics

from deltasam_fairseq.fairseq_plugin.sharpness import meters, run
from deltasam_fairseq.fairseq_plugin.sharpness.meters import AscentSums
from deltasam_fairseq.fairseq_plugin.sharpness.weighing import Seen, Tally
from tests.support import fairseq_toys as toys

OWN = {"sam_loss", "sharpness", "sam_gnorm", "sam_fallback"}
# Of delta_sam, which weighs the sentences.
WEIGHED = {"sam_ess", "sam_floored"}
# Not in every update.
MEASURED = {"sam_realised", "sam_realised_cos"}


@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize(
    ("method", "engine"),
    [("sam", "auto"), ("delta_sam", "auto"), ("per_instance", "auto"), ("per_instance", "loop")],
)
def test_the_loss_is_the_one_at_w(translation: Path, method: str, engine: str, scope: str) -> None:
    logs = []
    # Dropout off: the loop draws it sentence by sentence.
    flags = ("--dropout", "0", "--sam-scope", scope, "--sam-per-instance-engine", engine)
    for used in ("none", method):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags, "--sam-method", used)
        (log,) = toys.updates(trainer, [toys.batches(trainer)[:2]])
        logs.append(log)
    plain, ours = logs
    batched = (method, engine) == ("per_instance", "auto")
    # The engine rounds no perturbation. The loop takes no norms of sentences, a plain update does.
    expected = OWN if batched else OWN | MEASURED
    assert set(ours) - set(plain) == expected | (WEIGHED if method == "delta_sam" else set())
    for key in ("loss", "nll_loss", "bsz", "wpb"):
        assert ours[key] == pytest.approx(plain[key], rel=1e-5), key
    assert ours["sam_loss"] - ours["loss"] == pytest.approx(ours["sharpness"], abs=1e-6)
    assert ours["sharpness"] > 0
    assert ours["sam_fallback"] == 0


def test_sharpness_is_in_the_unit_of_the_loss(translation: Path) -> None:
    """Label-smoothed cross entropy logs bits per token; the closed form is in nats."""
    trainer = toys.make_trainer(
        translation, *toys.TRANSLATION, "--dropout", "0", "--sam-method", "sam", "--sam-rho", "1e-3"
    )
    (log,) = toys.updates(trainer, [toys.batches(trainer)[:1]])
    # l(w + rho v/|v|) - l(w) is rho |v| to first order, |v| per token.
    assert log["sharpness"] * math.log(2) == pytest.approx(1e-3 * log["sam_gnorm"], rel=0.02)


def test_the_ascent_norm_of_sam_is_fairseqs_own_gradient_norm(translation: Path) -> None:
    logs = []
    for method in ("none", "sam"):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-method", method)
        logs.append(toys.updates(trainer, [toys.batches(trainer)[:2]])[0])
    assert logs[1]["sam_gnorm"] == pytest.approx(logs[0]["gnorm"], rel=1e-5)


def test_the_effective_number_of_sentences() -> None:
    tally = Tally(sample_size=10.0)
    tally.add(Seen.of(torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64), torch.tensor(1.0)))
    sums = tally.sums(norm=6.0, fallbacks=0)
    assert sums.sam_ess == pytest.approx(2.0)
    assert sums.sam_floored == pytest.approx(1 / 3)
    # Norm 6 of a sum whose mean weight is one, per unit of a sample size of 10.
    assert sums.sam_gnorm == pytest.approx(6.0 / 10)
    assert tally.mean_weight == pytest.approx(4 / 3)
    assert sums.plus(AscentSums()) == sums


def test_fairseqs_progress_log_carries_the_meters(prediction: Path) -> None:
    lines = toys.train(prediction, *toys.PREDICTION, "--max-epoch", "1")
    inner = [line for line in lines if "loss" in line]
    assert inner
    for line in inner:
        assert set(line) >= OWN | WEIGHED, line
    (epoch,) = [line for line in lines if "train_loss" in line]
    assert {f"train_{name}" for name in OWN | WEIGHED} <= set(epoch)
    assert 1 <= float(epoch["train_sam_ess"]) <= 8


def test_no_line_of_the_log_has_a_meter_without_a_value(
    translation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured now and then, and plain updates between perturbed ones."""
    monkeypatch.setattr(run, "MEASURE_EVERY", 2)
    flags = ("--sam-method", "sam", "--sam-interval", "2", "--max-update", "6", "--max-epoch", "1")
    lines = toys.train(translation, *toys.TRANSLATION, *flags)
    inner = [line for line in lines if "loss" in line]
    assert len(inner) == 6
    assert all(value is not None and value != "None" for line in lines for value in line.values())
    assert [line.keys() >= OWN for line in inner] == [True, False] * 3
    assert [line.keys() & OWN for line in inner[1::2]] == [set()] * 3
    assert [line.keys() >= MEASURED for line in inner] == [True, *[False] * 3, True, False]
    (epoch,) = [line for line in lines if "train_loss" in line]
    assert {f"train_{name}" for name in OWN | MEASURED} <= set(epoch)
    # An average over the measured updates alone.
    measured = [float(line["sam_realised"]) for line in inner if "sam_realised" in line]
    assert float(epoch["train_sam_realised"]) == pytest.approx(sum(measured) / 2, abs=1e-4)


def test_meters_that_were_taken_out_come_back_in_their_place() -> None:
    with metrics.aggregate(new_root=True) as seen:
        for name, priority in (("sam_realised", 414), ("last", 500), ("sam_gnorm", 410)):
            metrics.log_scalar(name, 1.0, priority=priority)
        seen["sam_realised"].reset()
        seen["last"].reset()
        meters.forget_empty()
        assert list(seen) == ["sam_gnorm", "last"]
        metrics.log_scalar("sam_realised", 2.0, priority=414)
    assert list(seen) == ["sam_gnorm", "sam_realised", "last"]
    assert len(seen.state_dict()) == 3
