"""Which weights are perturbed, and the shape of the neighbourhood around them.

The plain neighbourhood is a ball, ‖ε‖₂ ≤ ρ. With a diagonal stretch T it is
‖T⁻¹ε‖₂ ≤ ρ, and the steepest way in it is ε = ρ T²∇l / ‖T∇l‖. T is made of a
factor for each parameter (0 leaves it alone, 2 lets it move twice as far) and,
for adaptive parameters, of |w| + 0.01 for each entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor

from deltasam_fairseq.core.noise import gaussian_direction
from deltasam_fairseq.core.perturb import Borrowed, perturbed
from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.core.vectors import global_norm, grouped, scaled_, unique, widened

# Added to |w|, so that weights of zero can move: Kwon et al. 2021, section 4 (their η).
ADAPTIVE_OFFSET = 0.01


class WeightSpace(Sequence[Tensor]):
    """A sequence of parameters with what is needed to move them.

    Args:
        params: The parameters; one that occurs twice is taken once.
        masters: Float32 copies of half-precision parameters, in the order of
            the unique parameters; ``None`` if the parameters are all there is.
        factors: Relative radius by ``id`` of a parameter, at least 0; 1 where
            none is given.
        adaptive: ``id`` of the parameters whose entries move in proportion to
            their size (adaptive SAM).

    Source:
        Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization",
        section 3; Mueller et al. 2023, "Normalization Layers Are All That
        Sharpness-Aware Minimization Needs", for factors of 0 and 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        masters: Sequence[Tensor] | None = None,
        factors: Mapping[int, float] | None = None,
        adaptive: Iterable[int] = (),
    ) -> None:
        self.params = unique(params)
        self.masters = masters
        self._factors = dict(factors or {})
        self._adaptive = frozenset(adaptive)
        self._is_ball = not self._adaptive and all(f == 1 for f in self._factors.values())

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> WeightSpace:
        """Take a space as it is, and any other sequence for a plain ball.

        Args:
            params: A space or parameters.

        Returns:
            The space.
        """
        return params if isinstance(params, WeightSpace) else cls(params)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        return self.params[index]

    def __len__(self) -> int:
        return len(self.params)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.params)

    def only(self, params: Iterable[Tensor], *, masters: bool = False) -> WeightSpace:
        """Restrict the space to some of its parameters that may move.

        Args:
            params: Some of the parameters.
            masters: Whether the float32 copies take the parameters' places.

        Returns:
            A space of the same shape.
        """
        wanted = {id(p) for p in params}
        copies = self.masters if self.masters is not None else self.params
        kept = [
            (param, copy)
            for param, copy in zip(self.params, copies, strict=True)
            if id(param) in wanted and self.factor(param)
        ]
        as_param = [copy if masters else param for param, copy in kept]
        named = [(id(param), id(new)) for (param, _), new in zip(kept, as_param, strict=True)]
        return WeightSpace(
            as_param,
            masters=None if masters or self.masters is None else [copy for _, copy in kept],
            factors={new: self._factors[old] for old, new in named if old in self._factors},
            adaptive=[new for old, new in named if old in self._adaptive],
        )

    def gaussian(self, *, radius: float, seed: int) -> list[Tensor | None]:
        """Draw a random direction on the neighbourhood's border.

        Args:
            radius: ρ, at least 0.
            seed: Seed of the draw.

        Returns:
            One tensor per parameter, T times a Gaussian direction of norm
            ``radius``; ``None`` for a parameter that stays where it is.
        """
        moving = [position for position, param in enumerate(self) if self.factor(param)]
        drawn = gaussian_direction([self.params[i] for i in moving], radius=radius, seed=seed)
        direction: list[Tensor | None] = [None] * len(self)
        for position, noise in zip(moving, drawn, strict=True):
            direction[position] = noise
        return self._stretched(direction)

    @torch.no_grad()
    def steepest(self, gradients: Sequence[Tensor | None]) -> tuple[list[Tensor | None], float]:
        """Turn gradients into the direction of the steepest ascent.

        Args:
            gradients: One per parameter, or ``None``; changed in place where the
                neighbourhood is not a ball.

        Returns:
            T²∇l, and ‖T∇l‖: their ratio times ρ is ε. In a ball the direction is
            the gradients themselves. The norm is 0 if nothing can move, and not
            finite if an entry is not.
        """
        direction, norm = self.steepest_unread(gradients)
        return direction, norm.item()

    @torch.no_grad()
    def steepest_unread(
        self, gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], Tensor]:
        """Do the same, and leave it to the caller when to wait for the norm.

        Args:
            gradients: As for :meth:`steepest`.

        Returns:
            The direction, and the norm as a float64 scalar on a gradient's device.
        """
        once = list(gradients) if self._is_ball else self._stretched(gradients)
        norm = global_norm([g for g in once if g is not None])
        return once if self._is_ball else self._stretched(once), norm

    def moved(
        self,
        direction: Sequence[Tensor | None],
        scale: float | Tensor = 1.0,
        *,
        measure: bool = False,
    ) -> Borrowed:
        """Move the parameters; see :class:`~deltasam_fairseq.core.perturb.Borrowed`.

        Args:
            direction: One tensor per parameter, or ``None``; consumed.
            scale: Factor on the direction.
            measure: Whether to measure what rounding left of the displacement.

        Returns:
            The record that puts them back.
        """
        return Borrowed(self.params, direction, scale, masters=self.masters, measure=measure)

    @contextmanager
    def perturbed(
        self, direction: Sequence[Tensor | None], scale: float | Tensor = 1.0
    ) -> Iterator[Borrowed]:
        """Run a block at the moved parameters.

        Args:
            direction: As for :meth:`moved`.
            scale: As for :meth:`moved`.

        Yields:
            The record.
        """
        with perturbed(self.params, direction, scale, masters=self.masters) as borrowed:
            yield borrowed

    @property
    def is_adaptive(self) -> bool:
        """Whether some parameters move in proportion to their size."""
        return bool(self._adaptive)

    def factor(self, param: Tensor) -> float:
        """Return a parameter's relative radius.

        Args:
            param: One of the parameters.

        Returns:
            1 where none was given; 0 if it stays where it is.
        """
        return self._factors.get(id(param), 1.0)

    @torch.no_grad()
    def _stretched(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return T times a vector, in place unless that is of half precision."""
        stretched: list[Tensor | None] = list(tensors)
        alike: dict[tuple[float, bool], list[int]] = {}
        for position, (param, tensor) in enumerate(zip(self, tensors, strict=True)):
            factor, adaptive = self.factor(param), id(param) in self._adaptive
            if factor == 0:
                stretched[position] = None
            elif tensor is not None and (adaptive or factor != 1):
                stretched[position] = wide(tensor)
                alike.setdefault((factor, adaptive), []).append(position)
        weights = self.params if self.masters is None else self.masters
        for (factor, adaptive), places in alike.items():
            own = [t for place in places if (t := stretched[place]) is not None]
            for group, around in grouped(own, [weights[place] for place in places], cut=adaptive):
                if adaptive:
                    sizes = torch._foreach_abs(widened(around))
                    torch._foreach_add_(sizes, ADAPTIVE_OFFSET)
                    scaled_(sizes, factor)
                    torch._foreach_mul_(group, sizes)
                else:
                    scaled_(group, factor)
        return stretched
