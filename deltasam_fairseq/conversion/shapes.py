"""Shapes of a transformer's weights, and a check that a checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deltasam_fairseq.errors import UserError

#: Rows of a position embedding before that of the first position: positions are counted from
#: the number of the padding symbol plus one, in fairseq and in Hugging Face's library.
POSITION_OFFSET = 2

Shapes = dict[str, tuple[int, ...]]
_SHOWN = 3


def pair(name: str, *shape: int) -> Shapes:
    """Return the shapes of a weight and of its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def layer(name: str, width: int, inner: int, attentions: Sequence[str] = ("self_attn",)) -> Shapes:
    """Return the shapes of one layer with these attentions, each with its layer norm."""
    shapes: Shapes = {}
    for attention in attentions:
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= pair(f"{name}.{attention}.{projection}", width, width)
        shapes |= pair(f"{name}.{attention}_layer_norm", width)
    shapes |= pair(f"{name}.fc1", inner, width)
    shapes |= pair(f"{name}.fc2", width, inner)
    return shapes | pair(f"{name}.final_layer_norm", width)


def require_shapes(
    state: Mapping[str, Tensor], shapes: Shapes, source: str, *, surplus: str
) -> None:
    """Check that weights are those of a model, and finite.

    Args:
        state: Weights by fairseq's names.
        shapes: Those of the model.
        source: Where the weights are from, for messages.
        surplus: The complaint about weights that the model does not have; ``{}`` names them.

    Raises:
        UserError: If one is missing, too many, of another shape or not finite.
    """
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    for complaint, names in (
        (" lacks {}", sorted(shapes.keys() - state.keys())),
        (f" {surplus}", sorted(state.keys() - shapes.keys())),
        (": {}", wrong),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UserError(source + complaint.format(", ".join(names[:_SHOWN]) + more))
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{source}: {name} has values that are not finite")
