"""Weights that come from the norms of the sentences' gradients, at the cost of SAM."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core.estimators import from_norms
from deltasam_fairseq.fairseq_plugin import hook
from tests.support import fairseq_toys as toys

FLAGS = ("--sam-inner", "sgd", "--lr", "0.05", "--sam-rho", "0.3", "--sam-method", "delta_sam")
TASKS = {"translation": toys.PRECISE, "prediction": toys.PREDICTION}


def run(
    data: Path, task: list[str], *flags: str, by_engine: bool = True, freq: int = 1
) -> tuple[list[Tensor], list[dict[str, float]], int]:
    """Two updates; the weights, the log, and how often the model ran."""
    trainer = toys.make_trainer(data, *task, *FLAGS, *flags, dtype=torch.float64)
    trainer.optimizer  # noqa: B018  (asking for it builds the run)
    hook._runs[trainer].needs_loop = not by_engine
    calls: list[int] = []
    trainer.get_model().register_forward_hook(lambda *_: calls.append(1))
    # As many sentences as positions tell nothing of whose row is whose.
    batches = [b for b in toys.batches(trainer) if b["net_input"]["src_tokens"].size(1) != 8]
    logs = toys.updates(trainer, [batches[:freq], batches[freq : 2 * freq]])
    return list(toys.parameters(trainer).values()), logs, len(calls)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("estimator", ["gibbs", "inverse_norm"])
@pytest.mark.parametrize("freq", [1, 2])
def test_the_engine_gives_what_passes_of_each_sentence_give(
    task: str, estimator: str, freq: int, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(task)
    flags = ("--dropout", "0.2", "--sam-estimator", estimator, "--update-freq", str(freq))
    fast, logs, calls = run(data, TASKS[task], *flags, freq=freq)
    slow, expected, _ = run(data, TASKS[task], *flags, freq=freq, by_engine=False)
    bound = 1e-8 if task == "translation" else 1e-4  # fairseq's classifier loss is in float32
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)
    for ours, theirs in zip(logs, expected, strict=True):
        for key in ("loss", "sam_ess", "sam_gnorm", "sharpness"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-6), key
    # Of these, freq look at the first update's losses; two check that they add up.
    assert calls == 2 * 2 * freq + freq + 2


@pytest.mark.usefixtures("float64")
def test_without_temperature_gibbs_is_sam(translation: Path) -> None:
    flags = ("--sam-estimator", "gibbs", "--sam-gibbs-temperature", "0")
    gibbs, logs, _ = run(translation, toys.PRECISE, *flags)
    sam, _, _ = run(translation, toys.PRECISE, "--sam-method", "sam")
    for a, b in zip(gibbs, sam, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert logs[0]["sam_ess"] == pytest.approx(8)


def test_weights_of_norms() -> None:
    norms = torch.tensor([1.0, 2.0, 0.0, torch.inf])
    inverse = from_norms("inverse_norm", norms)
    assert inverse.tolist() == [1.0, 0.5, 0.0, 0.0]
    gibbs = from_norms("gibbs", norms[:2], temperature=3.0)
    assert gibbs.sum() == pytest.approx(2)
    assert gibbs[1] / gibbs[0] == pytest.approx(torch.e ** (3 * (2 - 1) / 1.5))


def test_what_the_engine_cannot_is_done_by_passes_and_said_once(
    translation: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: Any = toys.make_trainer(
        translation, *toys.TRANSLATION, *FLAGS, "--sam-estimator", "gibbs"
    )
    own = trainer.task.train_step

    def changed(**given: Any) -> Any:
        return own(**given)

    monkeypatch.setattr(trainer.task, "train_step", changed, raising=False)
    with caplog.at_level(logging.WARNING):
        logs = toys.updates(trainer, [[batch] for batch in toys.batches(trainer)[:2]])
    said = [r for r in caplog.records if "--sam-estimator gibbs takes a backward" in r.message]
    assert len(said) == 1
    assert all(log["sam_fallback"] == 0 and 1 < log["sam_ess"] < 8 for log in logs)
