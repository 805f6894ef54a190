"""Examples of what a user directory may add."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.objectives.regularizers import REGULARIZERS
from tests.support import fairseq_toys as toys

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method", METHODS)
def test_a_criterion_of_ones_own(
    prediction: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module("own_plugin")

    flags = (*toys.PREDICTION, "--criterion", "focal_sentence_prediction", "--sam-method", method)
    trainer = toys.make_trainer(prediction, *flags)
    batches = toys.batches(trainer)
    logs = toys.updates(trainer, [[batches[0]], [batches[1]]])
    assert all(0 < log["loss"] < 1 for log in logs)


def test_a_regularizer_of_ones_own(prediction: Path) -> None:
    importlib.import_module("examples.own_regularizer")

    try:
        flags = (
            *(*toys.PREDICTION, "--criterion", "deltasam_sentence_prediction"),
            *("--regularizer", "confidence", "--regularizer-weight", "0.1"),
        )
        trainer = toys.make_trainer(prediction, *flags)
        (log,) = toys.updates(trainer, [[toys.batches(trainer)[0]]])
        assert -math.log(2) <= log["regularizer"] < 0
    finally:
        del REGULARIZERS._entries["confidence"]
