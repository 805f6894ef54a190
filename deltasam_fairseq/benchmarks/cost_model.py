"""What a method should cost, counted in passes over the batch."""

from __future__ import annotations

from typing import NamedTuple


class PassSeconds(NamedTuple):
    """What the passes over one batch take on a machine.

    Args:
        forward_no_grad: A forward pass that records no graph, seconds.
        forward: A forward pass that records one, seconds.
        backward: The backward pass, seconds.
        backward_no_weights: A backward pass down to the outputs of the embeddings,
            which computes no gradient of a weight, seconds.
    """

    forward_no_grad: float
    forward: float
    backward: float
    backward_no_weights: float

    @property
    def forward_share(self) -> float:
        """A forward pass without a graph, as a share of forward + backward.

        This is what each probe of Eq. 5 adds to an ordinary update, so it is
        the F / (F + B) that the limit on delta-SAM speaks of.
        """
        return self.forward_no_grad / (self.forward + self.backward)

    @property
    def forward_over_backward(self) -> float:
        """The machine's F : B, of the passes of an ordinary update."""
        return self.forward / self.backward


# Passes of one update, in the order of PassSeconds. What the batched engine of
# per_instance does beside its passes is not counted: of the norms and of the
# products with the perturbations no pass of an ordinary update says anything, so
# its prediction is a lower bound and the difference is what they take.
PASSES = {
    "none": (0, 1, 1, 0),
    "sam": (0, 2, 2, 0),
    "delta_sam": (2, 2, 2, 0),
    "per_instance": (0, 2, 1, 1),
}


def predicted_seconds(method: str, passes: PassSeconds) -> float | None:
    """Add up the passes of one update; everything else is taken to be free.

    Args:
        method: Name of the method.
        passes: What the passes take.

    Returns:
        Seconds; ``None`` for ``per_instance_loop``, whose passes over one sentence
        at a time are no fixed part of a pass over the batch.

    Example:
        A forward pass is a third of forward + backward, and so are the gradients
        of the weights:

        >>> third = PassSeconds(1.0, 1.0, backward=2.0, backward_no_weights=1.0)
        >>> [predicted_seconds(m, third) for m in PASSES]
        [3.0, 6.0, 8.0, 5.0]
    """
    if method not in PASSES:
        return None
    return sum(n * seconds for n, seconds in zip(PASSES[method], passes, strict=True))


def predicted_ratio(method: str, base: str, passes: PassSeconds) -> float | None:
    """Predict how many times as long as another a method takes.

    Args:
        method: Name of the method.
        base: Name of the method that it is compared with.
        passes: What the passes take.

    Returns:
        The ratio, no unit; ``None`` where one of them has no prediction.

    Example:
        >>> third = PassSeconds(1.0, 1.0, backward=2.0, backward_no_weights=1.0)
        >>> round(predicted_ratio("delta_sam", "sam", third), 3)
        1.333
    """
    above, below = predicted_seconds(method, passes), predicted_seconds(base, passes)
    return None if above is None or below is None else above / below
