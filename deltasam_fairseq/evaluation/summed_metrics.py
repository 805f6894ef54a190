"""GLUE's metrics as functions of sums over sentences: many draws of sentences are one product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SummedMetric:
    """How a metric comes from sums.

    Args:
        parts: What is summed: from predictions of shape (seeds, sentences) and labels of shape
            (sentences,), both class ids or both scores, to (sentences, seeds, parts).
        value: From the sums, with the parts last, to percent. Where it is 0 divided by 0 it is
            0; a correlation with a constant too, since a draw of sentences may have one.
    """

    parts: Callable[[Array, Array], Array]
    value: Callable[[Array], Array]


def _accuracy_parts(predictions: Array, labels: Array) -> Array:
    right = (predictions == labels).astype(np.float64).T
    return np.stack([right, np.ones_like(right)], axis=-1)


def _accuracy(sums: Array) -> Array:
    right, n = np.moveaxis(sums, -1, 0)
    return np.asarray(100 * right / n)


def _matthews_parts(predictions: Array, labels: Array) -> Array:
    said, true = (predictions == 1).T, (labels == 1)[:, None]
    cells = [said & true, said & ~true, ~said & true, ~said & ~true]
    return np.stack(cells, axis=-1).astype(np.float64)


def _matthews(sums: Array) -> Array:
    tp, fp, fn, tn = np.moveaxis(sums, -1, 0)
    return _percent(tp * tn - fp * fn, (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def _pearson_parts(predictions: Array, labels: Array) -> Array:
    # Around the labels' mean, so that no square loses the digits that count.
    x, y = np.broadcast_arrays((predictions - labels.mean()).T, (labels - labels.mean())[:, None])
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def _pearson(sums: Array) -> Array:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return _percent(n * xy - x * y, (n * xx - x * x) * (n * yy - y * y))


def _percent(numerator: Array, square: Array) -> Array:
    root = np.sqrt(np.maximum(square, 0.0))
    return 100 * np.divide(numerator, root, out=np.zeros_like(root), where=root > 0)


#: Those of GLUE's tables; class 1 is the positive one of Matthews'.
SUMMED: dict[str, SummedMetric] = {
    "accuracy": SummedMetric(_accuracy_parts, _accuracy),
    "matthews": SummedMetric(_matthews_parts, _matthews),
    "pearson": SummedMetric(_pearson_parts, _pearson),
}


def summed_score(metric: str, predictions: Array, labels: Array) -> Array:
    """Return the score of predictions of shape (seeds, sentences), in percent for each seed.

    Example:
        >>> summed_score("accuracy", np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 1.0]))
        array([ 50., 100.])
    """
    chosen = SUMMED[metric]
    return chosen.value(chosen.parts(predictions, labels).sum(axis=0))
