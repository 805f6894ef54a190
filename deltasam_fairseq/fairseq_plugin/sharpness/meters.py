"""What a sharpness-aware update logs, in fairseq's own meters.

A micro-batch's logging output travels through fairseq's reduction over
workers; what this plugin adds travels with it under a prefix: the criterion's
outputs at the perturbed weights, and sums of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from fairseq.logging import metrics
from torch import Tensor

from deltasam_fairseq.core.perturb import Realised

Logging = dict[str, Any]

_MOVED = "sam_moved:"
_SUM = "sam_sum:"

# Name of the meter, digits shown, and place among fairseq's (gnorm has 400).
_METERS = (
    ("sam_gnorm", 3, 410),
    ("sam_ess", 2, 411),
    ("sam_floored", 3, 412),
    ("sam_fallback", 3, 413),
)
# These are measured now and then.
_MEASURED = (
    ("sam_realised", 4, 414),
    ("sam_realised_cos", 4, 415),
)
_GROUPS = (
    ("perturbations", _METERS),
    ("measured", _MEASURED),
    ("sentences", (("sam_inorm", 3, 416),)),
    ("updates", (("sam_inorm_p90", 3, 417), ("sam_inorm_max", 3, 418))),
)
# Of a method that weighs the sentences of a perturbation.
_WEIGHED = {"sam_ess", "sam_floored"}
_COUNTS = ("sample_size", "ntokens", "nsentences")
_OWN = {"sam_loss", "sharpness", *(name for _, meters in _GROUPS for name, _, _ in meters)}


class AscentSums(NamedTuple):
    """Sums over perturbations; ``perturbations`` is how many there were.

    Attributes:
        perturbations: Number of perturbations.
        sam_gnorm: Norms of the ascent gradients, per unit of sample size, as if
            the mean weight were 1.
        sam_ess: Effective numbers of sentences.
        sam_floored: Shares of weights with a floored denominator.
        sam_fallback: How many of them took a fallback.
        measured: Number of perturbations whose rounding was measured.
        sam_realised: Lengths of these, as rounded, in units of ρ.
        sam_realised_cos: Their cosines with what was asked for.
        sentences: Number of sentences whose own gradient norms were found.
        sam_inorm: Their sum.
        updates: Number of updates with such sentences, counted by each worker.
        sam_inorm_p90: The 90th percentiles of the norms in each, summed.
        sam_inorm_max: The largest norms in each, summed.
        unshared: Number of parameters that this worker alone covers as yet; not logged.
    """

    perturbations: float = 0.0
    sam_gnorm: float = 0.0
    sam_ess: float = 0.0
    sam_floored: float = 0.0
    sam_fallback: float = 0.0
    measured: float = 0.0
    sam_realised: float = 0.0
    sam_realised_cos: float = 0.0
    sentences: float = 0.0
    sam_inorm: float = 0.0
    updates: float = 0.0
    sam_inorm_p90: float = 0.0
    sam_inorm_max: float = 0.0
    unshared: float = 0.0

    def plus(self, other: AscentSums) -> AscentSums:
        """Return the sums of both."""
        return AscentSums(*(a + b for a, b in zip(self, other, strict=True)))

    def with_realised(self, realised: Realised | None) -> AscentSums:
        """Add what rounding left of one perturbation, if it was measured."""
        if realised is None:
            return self
        return self._replace(
            measured=self.measured + 1,
            sam_realised=self.sam_realised + realised.share,
            sam_realised_cos=self.sam_realised_cos + realised.cosine,
        )


def sums_of_norms(norms: Tensor) -> AscentSums:
    """Sum up the norms of the gradients of the sentences of a worker's update.

    Args:
        norms: Shape ``(N,)``, N at least 1; those that are not finite count as 0.

    Returns:
        The sums of these alone.
    """
    norms = norms.nan_to_num(0.0, 0.0, 0.0)
    found = torch.stack([norms.sum(), norms.quantile(0.9), norms.max()])
    total_norm, high, largest = found.tolist()  # one read of a GPU
    return AscentSums(
        sentences=float(norms.numel()),
        sam_inorm=total_norm,
        updates=1.0,
        sam_inorm_p90=high,
        sam_inorm_max=largest,
    )


def combined(at_weights: Logging, moved: Logging, sums: AscentSums) -> Logging:
    """Put a micro-batch's outputs at both points and the sums into one.

    Args:
        at_weights: The criterion's logging output at w.
        moved: The same at w + eps.
        sums: What this micro-batch contributes; zeros but for one of them
            where several share a perturbation.

    Returns:
        One flat logging output.
    """
    return {
        **at_weights,
        **{_MOVED + key: value for key, value in moved.items()},
        **_prefixed(sums),
    }


def with_sums(output: Logging, sums: AscentSums) -> Logging:
    """Put a micro-batch's output of an update without a perturbation and the sums into one."""
    return {**output, **_prefixed(sums)}


def without_sums(logging_outputs: list[Logging]) -> tuple[list[Logging], list[Logging]]:
    """Undo :func:`with_sums`; the sums are those by name."""
    own = [{k: v for k, v in log.items() if not k.startswith(_SUM)} for log in logging_outputs]
    return own, [_without(_SUM, log) for log in logging_outputs]


def total(logging_outputs: list[Logging], name: str) -> float:
    """Add up one of the sums.

    Args:
        logging_outputs: From :func:`combined`, summed or gathered over workers.
        name: A field of :class:`AscentSums`.

    Returns:
        Its total.
    """
    return float(sum(log.get(_SUM + name, 0.0) for log in logging_outputs))


def reduce_and_log(
    logging_outputs: list[Logging],
    criterion: Any,
    reduce_metrics: Callable[..., None],
    *,
    weighs: bool,
    share: bool = False,
) -> None:
    """Log the task's own meters from the losses at w, and this plugin's beside them.

    ``sam_loss`` is the meter ``loss`` that the task would log at w + eps, so it
    is in the same unit, whatever the criterion makes of it.

    Args:
        logging_outputs: From :func:`combined`, summed or gathered over workers.
        criterion: The criterion.
        reduce_metrics: The task's own method.
        weighs: Whether the run's method weighs sentences.
        share: Whether the losses at w are those of a share of the sentences. The mean is
            logged as it is, with the counts of all, and ``sharpness`` is left out: it would be
            a difference between other sentences.
    """
    own = [
        {k: v for k, v in log.items() if not k.startswith((_MOVED, _SUM))}
        for log in logging_outputs
    ]
    moved = [_without(_MOVED, log) for log in logging_outputs]
    sums = [_without(_SUM, log) for log in logging_outputs]
    if share:
        own = [_counted_as(whole, part) for whole, part in zip(moved, own, strict=True)]
    with metrics.aggregate() as at_weights:
        reduce_metrics(own, criterion)
    with metrics.aggregate(new_root=True) as elsewhere:
        reduce_metrics(moved, criterion)
    before, after = _averages(*(found.get("loss") for found in (at_weights, elsewhere)))
    weight = float(sum(log.get("sample_size", 0) for log in own)) or 1.0
    if before is not None and after is not None:
        metrics.log_scalar("sam_loss", after, weight, priority=408, round=3)
        if not share:
            metrics.log_scalar("sharpness", after - before, weight, priority=409, round=5)
    log_sums(sums, weighs=weighs)


def log_sums(sums: list[Logging], *, weighs: bool) -> None:
    """Log the meters of the micro-batches' sums.

    Args:
        sums: By the names of :class:`AscentSums`.
        weighs: Whether the run's method weighs sentences.
    """
    for count, meters in _GROUPS:
        number = float(sum(s.get(count, 0) for s in sums))
        for name, digits, priority in meters if number else ():
            if name in _WEIGHED and not weighs:
                continue
            value = float(sum(s[name] for s in sums)) / number
            metrics.log_scalar(name, value, number, priority=priority, round=digits)


def forget_empty() -> None:
    """Take this plugin's meters that have nothing to say out of what fairseq logs next.

    fairseq empties its meters after each line of the log and keeps their names: one that is not
    logged in every update would be shown as ``None``.
    """
    for meters in metrics.get_active_aggregators():
        for name in _OWN & meters.keys():
            if not meters[name].count:
                del meters[name]
                meters.priorities = [entry for entry in meters.priorities if entry[-1] != name]


def added(outputs: list[Logging]) -> Logging:
    """Add up the logging outputs of a batch's sentences.

    Args:
        outputs: Outputs with numbers as values. A task of several data sets has keys
            of one of them alone.

    Returns:
        Their sums.
    """
    keys = dict.fromkeys(key for output in outputs for key in output)
    return {key: sum(output.get(key, 0) for output in outputs) for key in keys}


def _counted_as(everyone: Logging, part: Logging) -> Logging:
    """Scale the sums of a share of the sentences to the counts of all, which leaves its means."""
    size = float(part.get("sample_size", 0))
    factor = float(everyone["sample_size"]) / size if size else 1.0
    counts = {key: everyone[key] for key in _COUNTS if key in everyone}
    return {**{key: value * factor for key, value in part.items()}, **counts}


def _averages(*meters: Any) -> list[float | None]:
    """Return meters' values before they are rounded for display."""
    values: list[Any] = [getattr(meter, "avg", None) for meter in meters]
    if all(map(torch.is_tensor, values)):
        return list(torch.stack(values).tolist())  # one read of a GPU
    return [None if value is None else float(value) for value in values]


def _prefixed(sums: AscentSums) -> Logging:
    return {_SUM + key: value for key, value in sums._asdict().items()}


def _without(prefix: str, log: Logging) -> Logging:
    return {k[len(prefix) :]: v for k, v in log.items() if k.startswith(prefix)}
