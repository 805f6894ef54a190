"""A measurement made up for the tests, with every number known."""

from __future__ import annotations

import pytest

from deltasam_fairseq.benchmarks.record import Measurement
from deltasam_fairseq.benchmarks.variants import PASSES, VARIANTS, Times

PARAMETER_BYTES = 40_000_000


@pytest.fixture
def measurement() -> Measurement:
    """Return three rounds in which a forward pass is a third of forward + backward.

    Processor time is half the elapsed time, and everything takes twice as long
    in the second round.
    """

    def times(seconds: float) -> Times:
        return Times(seconds, seconds / 2)

    def rounds(seconds: float) -> list[Times | None]:
        return [times(seconds), times(2 * seconds), times(seconds)]

    return Measurement(
        model="translation",
        flags="--optimizer delta_sam",
        method_flags={name: variant.flags for name, variant in VARIANTS.items()},
        width=384,
        parameters=PARAMETER_BYTES // 4,
        parameter_bytes=PARAMETER_BYTES,
        batch={"sentences": 2, "source_tokens": 900, "target_tokens": 800},
        updates={
            "none": rounds(3.0),
            "sam": rounds(6.0),
            "delta_sam": rounds(8.1),
            "per_instance": rounds(6.6),
            "per_instance_loop": [times(24.0), None, None],
        },
        passes=[
            {
                name: times(factor * s)
                for name, s in zip(PASSES, (1.0, 1.25, 1.75, 0.8), strict=True)
            }
            for factor in (1.0, 2.0, 1.0)
        ],
        fallbacks={**dict.fromkeys(VARIANTS, 0.0), "delta_sam": 1.0},
        peak={
            "none": 200_000_000,
            "sam": 240_000_000,
            "delta_sam": 241_000_000,
            "per_instance": 300_000_000,
            "per_instance_loop": 120_000_000,
        },
        forward_bytes=160_000_000,
    )
