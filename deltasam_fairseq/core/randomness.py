"""Random state that is captured once and replayed, so that passes share dropout.

The loss differences of Eq. 5 and the two gradients of a sharpness-aware step
compare the same function at different weights only if dropout masks and
LayerDrop choices are the same in every pass.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of Python's, the CPU's and some GPUs' default generators.

    Args:
        python: ``random.getstate()``.
        cpu: ``torch.get_rng_state()``.
        cuda: CUDA generator state by device index.
    """

    python: tuple[Any, ...]
    cpu: Tensor
    cuda: dict[int, Tensor]

    @classmethod
    def capture(cls, tensors: Iterable[Tensor] = ()) -> RandomState:
        """Read the generators.

        Args:
            tensors: The model's tensors; the generator of every CUDA device
                that holds one is read as well.

        Returns:
            A snapshot that later draws do not change.
        """
        devices = {t.device.index or 0 for t in tensors if t.device.type == "cuda"}
        return cls(
            python=random.getstate(),
            cpu=torch.get_rng_state(),
            cuda={i: torch.cuda.get_rng_state(i) for i in sorted(devices)},
        )

    def replay(self) -> None:
        """Put the generators back to where they were when captured."""
        random.setstate(self.python)
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
