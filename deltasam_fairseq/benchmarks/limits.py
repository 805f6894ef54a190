"""The limits that a step must keep, and whether a measurement keeps them."""

from __future__ import annotations

from typing import NamedTuple

from deltasam_fairseq.benchmarks.measurement import Measurement
from deltasam_fairseq.benchmarks.spread import spread_of

# Below these sizes the limits say nothing: the saved random state is a share of the memory, and
# what torch does per operation, whatever its size, a share of the time.
LEAST_PARAMETERS = 5_000_000
LEAST_TOKENS = 512  # in a batch, of sources and targets, for the limits on time

SAM_TO_NONE = 2.05

# Holds where a forward pass is a third of forward + backward. Passes alone are
# 4/3 there; on a machine with another share they are 1 + share, and the limit
# moves with them, so that the same is left for everything else.
DELTA_SAM_TO_SAM = 1.40
FORWARD_SHARE = 1 / 3

EXTRA_COPIES = 1.05

# Of the batched per-instance step, at the widths of MiniLM and BERT-base, on the
# batches that such models are fine-tuned on: sentences, and tokens of each. Its
# memory grows with the activations and has no limit.
PER_INSTANCE_TO_SAM = 1.15
PER_INSTANCE_WIDTHS = (384, 768)
PER_INSTANCE_SENTENCES = (16, 32)
PER_INSTANCE_TOKENS = (64, 128)


class Check(NamedTuple):
    """One limit and what was measured.

    Args:
        model: Name of the model.
        what: What is limited.
        value: What was measured.
        limit: The largest value that passes.
    """

    model: str
    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the limit is kept; not if the value is not a number."""
        return self.value <= self.limit


def checks_of(found: Measurement, clock: str = "elapsed") -> list[Check]:
    """Compare a measurement with every limit that its methods, model and batch allow.

    Args:
        found: What was measured.
        clock: Clock of the times; see :class:`~.measurement.Times`.

    Returns:
        The checks: medians over rounds, and peak memory.
    """
    if found.parameters < LEAST_PARAMETERS:
        return []
    tokens = found.batch["source_tokens"] + found.batch["target_tokens"]
    checks = _times(found, clock) if tokens >= LEAST_TOKENS else []
    for method in ("sam", "delta_sam"):
        if method in found.updates:
            what = f"extra memory of {method}, copies of the parameters"
            checks.append(Check(found.model, what, found.extra_copies(method), EXTRA_COPIES))
    return checks


def _times(found: Measurement, clock: str) -> list[Check]:
    checks = []
    methods = found.updates.keys()
    if "sam" in methods:
        ratio = spread_of(found.ratios("sam", "none", clock)).median
        checks.append(Check(found.model, "time of sam over none", ratio, SAM_TO_NONE))
    if {"sam", "delta_sam"} <= methods:
        ratio = spread_of(found.ratios("delta_sam", "sam", clock)).median
        limit = delta_sam_limit(found.typical_passes(clock).forward_share)
        checks.append(Check(found.model, "time of delta_sam over sam", ratio, limit))
    if {"sam", "per_instance"} <= methods and limits_per_instance(found):
        ratio = spread_of(found.ratios("per_instance", "sam", clock)).median
        checks.append(
            Check(found.model, "time of per_instance over sam", ratio, PER_INSTANCE_TO_SAM)
        )
    return checks


def limits_per_instance(found: Measurement) -> bool:
    """Tell whether the batched per-instance step has a limit on a batch.

    Args:
        found: What was measured.

    Returns:
        Whether width, sentences and mean number of tokens are in its range.
    """
    sentences = found.batch["sentences"]
    tokens = found.batch["source_tokens"] / sentences
    (fewest, most), (shortest, longest) = PER_INSTANCE_SENTENCES, PER_INSTANCE_TOKENS
    return (
        found.width in PER_INSTANCE_WIDTHS
        and fewest <= sentences <= most
        and shortest <= tokens <= longest
    )


def delta_sam_limit(forward_share: float) -> float:
    """Move the limit on delta-SAM over SAM to a machine's own forward share.

    Args:
        forward_share: A forward pass without a graph over forward + backward.

    Returns:
        The limit, no unit.

    Example:
        >>> round(delta_sam_limit(1 / 3), 3), round(delta_sam_limit(0.38), 3)
        (1.4, 1.447)
    """
    return DELTA_SAM_TO_SAM + forward_share - FORWARD_SHARE
