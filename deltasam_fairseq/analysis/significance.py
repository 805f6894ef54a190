"""Methods compared pair by pair, from the records of sweeps: over seeds, and over sentences.

The two ask different things. Over seeds: would other seeds show a difference on these
sentences? Over sentences: would other sentences show one between these models?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from deltasam_fairseq.analysis.paired_tests import compare_over_sentences
from deltasam_fairseq.analysis.records import (
    OWN_FLAGS,
    Group,
    Groups,
    Key,
    Record,
    collect,
    in_order,
    pair_up,
    select,
)
from deltasam_fairseq.analysis.table import NONE, Table
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.resampling import least_p, sign_flip_test
from deltasam_fairseq.evaluation.summed_metrics import SUMMED, Array, summed_score
from deltasam_fairseq.recipes.sweep_plan import as_number
from deltasam_fairseq.registry import nearest

_HEADER = (
    *("comparison", "recipe", "model", "metric", "n", "difference", "std"),
    *("p seeds", "least p", "95 % sentences", "p sentences"),
)
#: Predictions are kept with four decimals, so a metric made of them differs by no more.
_ROUNDING = 0.01
#: Beginnings of the flags that methods have of their own.
_OF_METHODS = ("sam-", "regularizer", "rdrop-", "r3f-", "smart-", "freelb-")
#: Beside flags, what two runs that are compared should have alike.
_FACTS = ("updates", "commit")


def significance(
    folders: Sequence[Path],
    *,
    recipe: str | None = None,
    model: str | None = None,
    base: str | None = None,
) -> Table:
    """Return comparisons of each method with a base, over the seeds that both have.

    Args:
        folders: With sweeps below them.
        recipe: The only one to show; none shows all.
        model: The only one to show; none shows all.
        base: What to compare with; none is ``none``, and for ``delta_sam`` ``random`` too.

    Raises:
        UserError: If there is no such pair, or two groups were scored on different data.
    """
    groups = select(collect(folders), recipe, model)
    methods = {key[2] for key in groups}
    if base is not None and groups and base not in methods:
        raise UserError(f"--base {base}: no finished run of that method{nearest(base, methods)}")
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for key, other_key in _comparisons(groups, base):
        group, other = groups[key], groups[other_key]
        shared = pair_up(group, other)
        what = f"{key[2]} - {other_key[2]}"
        rows.append((what, *key[:2], *_cells(*shared)))
        found = (*_selection_remarks(group, other), *_unequal_settings(*shared))
        remarks += [f"{key[0]} {key[1]} {what}: {remark}." for remark in found]
    if not rows:
        named = ", ".join(map(str, folders))
        raise UserError(
            f"nothing to compare below {named}: it takes records of two methods with the same "
            "recipe, model and seeds; make some with: deltasam sweep"
        )
    return Table(_HEADER, rows, " ".join([_note(len(rows)), *remarks]))


def _comparisons(groups: Groups, base: str | None) -> Iterator[tuple[Key, Key]]:
    for key in in_order(groups):
        recipe, model, method = key
        usual = ("none", "random") if method == "delta_sam" else ("none",)
        for name in (base,) if base else usual:
            other = (recipe, model, name)
            if name != method and other in groups:
                if {*groups[key].seeds} & {*groups[other].seeds}:
                    yield key, other


def _cells(group: Group, other: Group) -> tuple[str, ...]:
    differences = [a - b for a, b in zip(group.scores, other.scores, strict=True)]
    n = len(differences)
    return (
        *(group.metric, str(n), f"{fmean(differences):+.2f}"),
        f"{stdev(differences):.2f}" if n > 1 else NONE,
        *(f"{sign_flip_test(differences):.4f}", f"{least_p(n):.4f}"),
        *_sentence_cells(group, other),
    )


def _sentence_cells(group: Group, other: Group) -> tuple[str, str]:
    metric, records = group.metric, (*group.records, *other.records)
    if metric not in SUMMED or not all("examples" in record for record in records):
        return NONE, NONE
    labels = _numbers(records[0]["examples"]["labels"])
    predictions, others = (
        np.stack([_predictions(metric, record, labels) for record in one.records])
        for one in (group, other)
    )
    found = compare_over_sentences(metric, predictions, others, labels)
    return f"{found.low:+.2f} to {found.high:+.2f}", f"{found.p_value:.4f}"


def _predictions(metric: str, record: Record, labels: Array) -> Array:
    """Read the predictions of a record, and check that they are those of its metric."""
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


def _selection_remarks(group: Group, other: Group) -> Iterator[str]:
    """Say which runs were left out, and which points were chosen by their scores."""
    if alone := sorted({*group.seeds} ^ {*other.seeds}):
        yield f"seeds {','.join(map(str, alone))} left out, which one of the two lacks"
    for one in (group, other):
        if one.points > 1:
            yield (
                f"{one.records[0]['method']} is the best of {one.points} points of a grid on these "
                f"sentences ({one}), so its p-values are too small"
            )


def _unequal_settings(group: Group, other: Group) -> Iterator[str]:
    """Say in what runs of the same seed differ beside their methods."""
    unequal: dict[str, str] = {}
    for pair in zip(group.records, other.records, strict=True):
        first, second = (
            {**record["flags"], **{name: str(record.get(name, NONE)) for name in _FACTS}}
            for record in pair
        )
        for name in sorted({*first, *second} - {*OWN_FLAGS}):
            values = first.get(name, NONE), second.get(name, NONE)
            # A method has flags of its own; those that both have, rho above all, should agree.
            own = name.startswith(_OF_METHODS) and NONE in values
            written = values if name in _FACTS else map(as_number, values)
            if len({*written}) > 1 and not own:
                unequal[name] = " and ".join(values)
    if unequal:
        listing = (f"{name} ({values})" for name, values in sorted(unequal.items()))
        yield f"they differ in {', '.join(listing)}"


def _note(count: int) -> str:
    return (
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
