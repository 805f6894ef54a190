"""What a forward pass starts from besides the weights: random generators and buffers.

Buffers are borrowed like the weights. BatchNorm's statistics, spectral norm's
vectors and counters of batches belong to training: one update moves them once,
whatever the number of its passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltasam_fairseq.core.randomness import RandomState

# A buffer and its value at the moment; both None for one that is not there yet, the value
# alone for one that nothing can write to.
Held = tuple[Tensor | None, Tensor | None]


class Buffers:
    """The buffers of some modules, with their values at one moment.

    Args:
        modules: The modules, without their descendants.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._held: dict[int, tuple[nn.Module, dict[str, Held]]] = {}
        for module in modules:
            self.hold(module)

    def __contains__(self, module: nn.Module) -> bool:
        """Tell whether a module's buffers are held."""
        return id(module) in self._held

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose buffers are held."""
        return [module for module, _ in self._held.values()]

    def hold(self, module: nn.Module) -> None:
        """Hold a module's own buffers, with their values now; nothing if they are held.

        Args:
            module: The module, before a pass has changed its buffers.
        """
        if module not in self:
            with torch.no_grad():
                values = {
                    name: (
                        tensor,
                        None if tensor is None or _is_expanded(tensor) else tensor.clone(),
                    )
                    for name, tensor in module._buffers.items()
                }
            self._held[id(module)] = (module, values)

    def now(self) -> Buffers:
        """Return the same modules' buffers with the values that they have now."""
        return Buffers(self.modules)

    def changed(self) -> bool:
        """Tell whether a pass has changed a buffer since."""
        return any(
            module._buffers.keys() != values.keys()
            or any(
                module._buffers[name] is not tensor
                or (tensor is not None and value is not None and not torch.equal(tensor, value))
                for name, (tensor, value) in values.items()
            )
            for module, values in self._held.values()
        )

    def replay(self) -> None:
        """Give the buffers back the values that are held.

        Values are copied in place. A pass may also have put another tensor in a
        buffer's place, or added a buffer: the tensor that was there returns, and
        an added buffer goes. Of a tensor that several modules share, the value that
        was held first counts: a pass may have changed it before the next was met.
        """
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for module, values in self._held.values():
            for name in module._buffers.keys() - values.keys():
                del module._buffers[name]
            for name, (tensor, value) in values.items():
                module._buffers[name] = tensor
                if tensor is not None and value is not None:
                    kept.setdefault(id(tensor), (tensor, value))
        if kept:
            there, held = zip(*reversed(kept.values()), strict=True)
            with torch.no_grad():
                torch._foreach_copy_(there, held)


def _is_expanded(tensor: Tensor) -> bool:
    """Tell whether entries share memory, so that PyTorch refuses to write to them."""
    return tensor.layout is torch.strided and any(
        size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


@dataclass(frozen=True)
class PassState:
    """Random generators and buffers at one moment, so that passes can start alike.

    Args:
        random: The generators.
        buffers: The buffers.
    """

    random: RandomState
    buffers: Buffers

    @classmethod
    def capture(cls, tensors: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> PassState:
        """Read the generators and the buffers.

        Args:
            tensors: The model's tensors, whose devices' generators are read.
            modules: The modules whose buffers are read, without their descendants.

        Returns:
            A snapshot that later passes do not change.
        """
        return cls(RandomState.capture(tensors), Buffers(modules))

    def replay(self) -> None:
        """Put generators and buffers back to where they were."""
        self.random.replay()
        self.buffers.replay()
