"""Uses of a parameter that the engine did not see, found in autograd's graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from deltasam_fairseq.per_instance.errors import Unsupported


def refuse_unseen_uses(losses: Tensor, seen: Iterable[Tensor], names: Mapping[int, str]) -> None:
    """Walk from the losses to the parameters.

    Operations that PyTorch does not let be overridden (compiled extensions,
    scripted modules, custom autograd functions) use a parameter itself; all
    others use the engine's stand-in for it.

    Args:
        losses: With their graph.
        seen: The stand-ins.
        names: Of the parameters, by ``id``.

    Raises:
        Unsupported: If a path leads to a parameter and not through its stand-in.
    """
    allowed = {tensor.grad_fn for tensor in seen}
    start: Any = losses.grad_fn
    met = {start}
    ahead = [start]
    while ahead:
        node = ahead.pop()
        for following, _ in node.next_functions if node is not None else ():
            if following is None:
                continue
            variable = getattr(following, "variable", None)
            if variable is not None and id(variable) in names and node not in allowed:
                raise Unsupported(
                    f"{names[id(variable)]} is used in {node.name()}, which no layer rule can see"
                )
            if following not in met:
                met.add(following)
                ahead.append(following)
