"""Methods compared pair by pair over the same seeds, from the records of sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from deltasam_fairseq.analysis.paired_tests import compare_over_sentences, least_p, sign_flip_test
from deltasam_fairseq.analysis.summed_metrics import SUMMED, Array, summed_score
from deltasam_fairseq.analysis.sweep_cells import (
    OWN_FLAGS,
    Group,
    Key,
    Pair,
    collect,
    describe_grid,
    in_order,
    pair_up,
    select,
)
from deltasam_fairseq.analysis.table import NONE, Table
from deltasam_fairseq.errors import UserError

_HEADER = (
    *("comparison", "recipe", "model", "metric", "n", "difference", "std"),
    *("p seeds", "least p", "95 % sentences", "p sentences"),
)
#: Predictions are kept with four decimals, so a metric made of them differs by no more.
_ROUNDING = 0.01
#: Beside flags, what two runs that are compared should have alike.
_FACTS = ("updates", "commit")

Record = Mapping[str, Any]


def significance(
    folders: Sequence[Path],
    *,
    recipe: str | None = None,
    model: str | None = None,
    base: str | None = None,
) -> Table:
    """Compare each method with a base.

    Args:
        folders: With sweeps below them.
        recipe: The only one to show; none shows all.
        model: The only one to show; none shows all.
        base: What to compare with; none is ``none``, and for ``delta_sam`` ``random`` too.

    Returns:
        One row per comparison: mean and standard deviation of the differences over the seeds
        that both have, and two tests.

    Raises:
        UserError: If there is no such pair, or two groups were scored on different data.
    """
    groups = select(collect(folders), recipe, model)
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for one, name, method, other in _comparisons(groups, base):
        group, against = groups[one, name, method], groups[one, name, other]
        pair = pair_up(group, against)
        what = f"{method} - {other}"
        rows.append((what, one, name, *_cells(pair)))
        notes += [f"{one} {name} {what}: {remark}" for remark in _remarks(group, against, pair)]
    if not rows:
        named = ", ".join(map(str, folders))
        raise UserError(
            f"nothing to compare below {named}: it takes records of two methods with the same "
            "recipe, model and seeds; make some with: deltasam sweep"
        )
    return Table(_HEADER, rows, _note(len(rows), notes))


def _comparisons(
    groups: Mapping[Key, Group], base: str | None
) -> Iterator[tuple[str, str, str, str]]:
    for recipe, model, method in in_order(groups):
        bases = (base,) if base else ("none", "random") if method == "delta_sam" else ("none",)
        for other in bases:
            there = groups.get((recipe, model, other))
            if there is None or other == method:
                continue
            if set(there.seeds) & set(groups[recipe, model, method].seeds):
                yield recipe, model, method, other


def _cells(pair: Pair) -> tuple[str, ...]:
    differences, n = pair.differences, len(pair.seeds)
    spread = f"{stdev(differences):.2f}" if n > 1 else NONE
    metric = next(iter(pair.records[0]["metrics"]))
    return (
        *(metric, str(n), f"{fmean(differences):+.2f}", spread),
        *(f"{sign_flip_test(differences):.4f}", f"{least_p(n):.4f}"),
        *_sentence_cells(metric, pair),
    )


def _sentence_cells(metric: str, pair: Pair) -> tuple[str, str]:
    if metric not in SUMMED or not pair.has_examples:
        return NONE, NONE
    labels = _numbers(pair.records[0]["examples"]["labels"])
    ours, others = (
        np.stack([_predictions(metric, record, labels) for record in records])
        for records in (pair.records, pair.others)
    )
    found = compare_over_sentences(metric, ours, others, labels)
    return f"{found.low:+.2f} to {found.high:+.2f}", f"{found.p_value:.4f}"


def _predictions(metric: str, record: Record, labels: Array) -> Array:
    kept = record["examples"]
    name = f"{record['recipe']} {record['model']} {record['method']} seed {record['seed']}"
    predictions = _numbers(kept["predictions"])
    if predictions.shape != labels.shape or not np.array_equal(_numbers(kept["labels"]), labels):
        raise UserError(f"{name}: its record has other sentences than that of another run")
    score = float(summed_score(metric, predictions[None], labels)[0])
    if abs(score - record["metrics"][metric]) > _ROUNDING:
        raise UserError(
            f"{name}: the predictions in its record give {metric} {score:.2f}, its metrics say "
            f"{record['metrics'][metric]:.2f}"
        )
    return predictions


def _numbers(line: str) -> Array:
    return np.array(line.split(), dtype=np.float64)


def _remarks(group: Group, against: Group, pair: Pair) -> Iterator[str]:
    alone = sorted({*group.seeds, *against.seeds} - {*pair.seeds})
    if alone:
        yield f"seeds {','.join(map(str, alone))} left out, which one of the two lacks"
    for one in (group, against):
        if one.points > 1:
            yield (
                f"{one.records[0]['method']} is the best of {one.points} points of a grid on these "
                f"sentences ({describe_grid(one)}), so its p-values are too small"
            )
    differing = dict(
        found
        for pair_of in zip(pair.records, pair.others, strict=True)
        for found in _differing(*pair_of)
    )
    if differing:
        said = (f"{name} ({how})" for name, how in sorted(differing.items()))
        yield f"they differ in {', '.join(said)}"


def _differing(record: Record, other: Record) -> Iterator[tuple[str, str]]:
    """Yield what two runs differ in beside their methods: flags, updates made, commit."""
    first, second = (
        {**one.get("flags", {}), **{name: str(one.get(name, NONE)) for name in _FACTS}}
        for one in (record, other)
    )
    for name in sorted({*first, *second} - {*OWN_FLAGS}):
        values = first.get(name, NONE), second.get(name, NONE)
        # A method has flags of its own; those that both have, rho above all, should agree.
        own = name.startswith("sam-") and NONE in values
        if values[0] != values[1] and not own:
            yield name, " and ".join(values)


def _note(count: int, remarks: Sequence[str]) -> str:
    text = (
        "Difference: of the metric on the validation set, in points, mean over the n seeds that "
        "both have; std: of these n differences. Seeds vary the initialization of the head, the "
        "order of the data and dropout. p seeds: exact sign-flip test of the n differences, "
        "two-sided, on these sentences alone; with n seeds it cannot go below least p, which is "
        "1/16 for n = 5. 95 % and p sentences: bootstrap and randomization over the validation "
        "sentences of the metric's mean over seeds, for these models alone, whatever other seeds "
        "would give. A difference that is more than luck is small in both. "
        f"The table has {count} comparison{'' if count == 1 else 's'}; no p-value is corrected "
        "for their number."
    )
    return " ".join([text, *(f"{remark}." for remark in remarks)])
