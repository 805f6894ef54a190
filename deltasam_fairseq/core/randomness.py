"""Random state that is captured once and replayed, so that passes share dropout.

The loss differences of Eq. 5 and the two gradients of a sharpness-aware step
compare the same function at different weights only if dropout masks and
LayerDrop choices are the same in every pass.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the default generators of Python, NumPy, the CPU and some GPUs.

    Args:
        python: ``random.getstate()``.
        numpy: ``numpy.random.get_state()``, if the program uses NumPy: some of
            fairseq's models draw LayerDrop from there.
        cpu: ``torch.get_rng_state()``.
        cuda: CUDA generator state by device index.
    """

    python: tuple[Any, ...]
    numpy: Any
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
            numpy=sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None,
            cpu=torch.get_rng_state(),
            cuda={i: torch.cuda.get_rng_state(i) for i in sorted(devices)},
        )

    def replay(self) -> None:
        """Put the generators back to where they were when captured."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
