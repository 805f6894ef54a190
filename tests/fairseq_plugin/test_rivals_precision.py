"""R-Drop, R3F, SMART and FreeLB compute in half precision what they compute in float32."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.fairseq_plugin.precision import MODES
from tests.support import fairseq_toys as toys

# Noise that half precision can tell from none.
RIVALS = {
    "rdrop": ("--regularizer", "rdrop", "--dropout", "0.2"),
    "r3f": ("--regularizer", "r3f", "--r3f-eps", "0.5", "--dropout", "0"),
    "smart": (
        *("--regularizer", "smart", "--smart-eps", "0.3", "--smart-step", "0.2"),
        *("--smart-sigma", "0.1", "--dropout", "0"),
    ),
    "freelb": ("--freelb-steps", "2", "--dropout", "0"),
}
METERS = ("loss", "regularizer", "gnorm", "sam_gnorm", "sharpness", "freelb_delta_norm")


@pytest.mark.parametrize(
    ("mode", "method", "bound"),
    [
        ("fp16", "sam", 0.01),
        ("fp16", "per_instance", 0.01),
        ("memory-efficient fp16", "sam", 0.01),
        ("amp", "sam", 0.01),
        ("bf16", "sam", 0.1),  # the spacing at a loss of 5 is 0.03, and the sharpness 0.2
    ],
)
@pytest.mark.parametrize("rival", RIVALS)
def test_meters_are_float32s(
    translation: Path, rival: str, mode: str, method: str, bound: float
) -> None:
    single, half = (meters(translation, rival, method, precision) for precision in ("fp32", mode))
    assert single["gnorm"] > 0
    assert ("freelb_delta_norm" if rival == "freelb" else "regularizer") in single
    assert half == pytest.approx(single, rel=bound)


@functools.cache
def meters(data: Path, rival: str, method: str, mode: str) -> dict[str, float]:
    """Those of one update."""
    trainer = toys.make_trainer(
        data,
        *(*toys.TRANSLATION, "--criterion", "deltasam_label_smoothed_cross_entropy"),
        *(*RIVALS[rival], "--sam-method", method, "--sam-inner", "adam"),
        *("--fp16-init-scale", "16", *MODES[mode]),
    )
    (log,) = toys.updates(trainer, [toys.batches(trainer)[:2]])
    assert trainer.get_num_updates() == 1
    return {name: log[name] for name in METERS if name in log}
