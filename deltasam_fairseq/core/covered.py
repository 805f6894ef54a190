"""Which parameters the random direction of Eq. 5 covers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


class Covered:
    """The parameters that have received a gradient in some ascent, the present one included.

    A part of the model that takes no part in the loss would only dilute the
    direction. What one batch reaches is not the answer either: a layer may be
    dropped by a coin, belong to another batch, or be frozen for some updates. So
    an ascent that reaches a parameter for the first time adds it and weighs its
    sentences anew. Nothing is ever taken out; what does not train is passed over.

    Args:
        params: All that may ever be perturbed, each once, in an order that a
            resumed run has too.
        positions: Places in ``params`` of those that are covered already.
    """

    def __init__(self, params: Sequence[Tensor], positions: Iterable[int] = ()) -> None:
        self.params = params
        self.positions = set(positions)
        self._place = {id(p): i for i, p in enumerate(params)}

    def among(self, params: Iterable[Tensor]) -> list[Tensor]:
        """List those of some parameters that are covered and train at the moment.

        Args:
            params: Some of the parameters.

        Returns:
            Some of these, in their order.
        """
        return [p for p in params if p.requires_grad and self._place[id(p)] in self.positions]

    def grow(self, reached: Iterable[Tensor]) -> bool:
        """Add the parameters that received a gradient.

        Args:
            reached: Some of the parameters.

        Returns:
            Whether any of them is new.
        """
        before = len(self.positions)
        self.positions.update(self._place[id(p)] for p in reached)
        return len(self.positions) > before
