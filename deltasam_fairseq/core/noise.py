"""Gaussian directions in weight space, of a given length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltasam_fairseq.core.precision import is_half
from deltasam_fairseq.core.vectors import global_norm, grouped, scaled_


def gaussian_direction(params: Sequence[Tensor], *, radius: float, seed: int) -> list[Tensor]:
    """Draw r ~ N(0, I) over all parameters together and rescale it to an L2 norm.

    The draw uses generators of its own, so the default ones, which
    dropout uses, do not advance. The same seed gives the same direction on every
    worker that has the same kind of device.

    Args:
        params: The parameters to cover, each once.
        radius: L2 norm of the result, rho in the paper; at least 0.
        seed: Seed of the draw, 0 to 2**63 - 1.

    Returns:
        One tensor per parameter, of its shape and device, and of its dtype or
        float32 if that is coarser: half precision would round it to zero.

    Source:
        Zhou et al. 2022, section 5.2: "we simply set sigma = 1 and rescale the
        random perturbation afterwards" (to an L2 norm of rho).
    """
    generators: dict[torch.device, torch.Generator] = {}
    alike: dict[Any, list[int]] = {}
    for place, param in enumerate(params):
        kind = (param.device, param.dtype, param.shape, param.stride())
        alike.setdefault(kind, []).append(place)
    direction: dict[int, Tensor] = {}
    for places in alike.values():
        # One draw for all parameters of a shape, of which a model has few.
        like = params[places[0]]
        if like.device not in generators:
            generators[like.device] = torch.Generator(device=like.device).manual_seed(seed)
        drawn = _drawn(like, len(places), generators[like.device])
        direction.update(zip(places, drawn, strict=True))
    vector = [direction[place] for place in range(len(params))]
    # r <- radius * r / ||r||, with the norm over all parameters together.
    norm = global_norm(vector)
    factor = torch.where(norm > 0, radius / norm, 0.0)
    for (group,) in grouped(vector):
        scaled_(group, factor)
    return vector


def _drawn(like: Tensor, count: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Draw tensors of a parameter's shape, and in its memory order if it fills its memory."""
    strides = like.stride()
    order = sorted(range(like.dim()), key=lambda d: (-strides[d], d))
    natural = list(range(like.dim()))
    if like.is_contiguous() or not like.permute(order).is_contiguous():
        order = natural
    dtype = torch.float32 if is_half(like) else like.dtype
    shape = (count, *(like.shape[d] for d in order))
    parts = torch.empty(shape, dtype=dtype, device=like.device).normal_(generator=generator)
    if order == natural:
        return parts.unbind()
    inverse = sorted(natural, key=order.__getitem__)
    return [part.permute(inverse) for part in parts.unbind()]


def seed_for(base: int, step: int) -> int:
    """Mix a run's seed and a step number into the seed of one draw.

    Args:
        base: Seed of the run; any integer.
        step: Number of the update; any integer.

    Returns:
        A seed that differs between steps and between runs (splitmix64 of both).
    """
    mixed = (base * 0x9E3779B97F4A7C15 + step) & _MASK
    for multiplier, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
        mixed = ((mixed ^ (mixed >> shift)) * multiplier) & _MASK
    return (mixed ^ (mixed >> 31)) & (2**63 - 1)


_MASK = 2**64 - 1
