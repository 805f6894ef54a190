"""Gaussian directions in weight space, of a given length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltasam_fairseq.core.vectors import global_norm


def gaussian_direction(params: Sequence[Tensor], *, radius: float, seed: int) -> list[Tensor]:
    """Draw r ~ N(0, I) over all parameters together and rescale it to an L2 norm.

    The draw uses generators of its own, so the default ones, and with them
    dropout, do not notice. The same seed gives the same direction on every
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
    direction = []
    for param in params:
        generator = generators.get(param.device)
        if generator is None:
            generator = torch.Generator(device=param.device).manual_seed(seed)
            generators[param.device] = generator
        dtype = torch.promote_types(param.dtype, torch.float32)
        empty = torch.empty_like(param, dtype=dtype, requires_grad=False)
        direction.append(empty.normal_(generator=generator))
    norm = global_norm(direction)
    if norm > 0:
        torch._foreach_mul_(direction, radius / norm.item())
    return direction


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
