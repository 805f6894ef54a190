"""PyTorch's own attention, taken apart into the linear layers that it is made of.

``torch.nn.MultiheadAttention`` hands all its weights to one function. Here the
same is computed with a projection at a time, which the rule for linear layers
sees, and with the same operation in the middle, which draws the same dropout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deltasam_fairseq.per_instance.errors import Unsupported
from deltasam_fairseq.per_instance.rules.base import decomposition


@decomposition(F.multi_head_attention_forward)
def attention(  # noqa: PLR0917  (as the function is called)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention of time-first sequences; the arguments are PyTorch's.

    Where query, key and value are not one tensor, packed weights project each of
    them whole, and the parts that are not wanted are dropped.

    Args:
        query: Shape ``(T, N, C)``.
        key: Shape ``(S, N, ...)``.
        value: Shape ``(S, N, ...)``.
        embed_dim_to_check: C.
        num_heads: H.
        in_proj_weight: Shape ``(3 C, C)``.
        in_proj_bias: Shape ``(3 C,)``.
        bias_k: Refused.
        bias_v: Refused.
        add_zero_attn: Refused.
        dropout_p: Of the attention's probabilities.
        out_proj_weight: Shape ``(C, C)``.
        out_proj_bias: Shape ``(C,)``.
        training: Whether there is dropout.
        key_padding_mask: Boolean or added, shape ``(N, S)``.
        need_weights: Whether to return probabilities.
        attn_mask: Boolean or added, shape ``(T, S)`` or ``(N H, T, S)``.
        use_separate_proj_weight: Whether the three below are used.
        q_proj_weight: Shape ``(C, C)``.
        k_proj_weight: Shape ``(C, ...)``.
        v_proj_weight: Shape ``(C, ...)``.
        static_k: Refused.
        static_v: Refused.
        average_attn_weights: Whether to return their mean over heads.
        is_causal: A hint about ``attn_mask``.

    Returns:
        The result, shape ``(T, N, C)``, and the probabilities.

    Raises:
        Unsupported: If keys are added to, or a sequence has no dimension for sentences.
    """
    if (
        query.dim() != 3
        or add_zero_attn
        or any(t is not None for t in (bias_k, bias_v, static_k, static_v))
    ):
        raise Unsupported(
            "torch.nn.MultiheadAttention has a batched perturbation for batches of sequences, "
            "without bias_k, bias_v, add_zero_attn and static keys"
        )
    length, count, width = query.shape
    source = len(key)
    packed: Any = in_proj_weight
    if use_separate_proj_weight:
        own: tuple[Any, ...] = (q_proj_weight, k_proj_weight, v_proj_weight)
        separate = zip((query, key, value), own, strict=True)
        projected = [_shifted(F.linear(x, w), in_proj_bias, n) for n, (x, w) in enumerate(separate)]
    else:
        whole = {id(x): x for x in (query, key, value)}
        done = {name: F.linear(x, packed, in_proj_bias) for name, x in whole.items()}
        projected = [done[id(x)].chunk(3, -1)[n] for n, x in enumerate((query, key, value))]
    q, k, v = (_by_head(x, num_heads) for x in projected)
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else _mask(attn_mask, key_padding_mask, q, source)
    dropout_p = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(2, 3)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        if dropout_p > 0:
            flat = F.dropout(weights.flatten(0, 1), dropout_p)
            weights = flat.view(weights.shape)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, causal)
    mixed = mixed.permute(2, 0, 1, 3).reshape(length, count, width)
    return F.linear(mixed, out_proj_weight, out_proj_bias), weights


def _shifted(x: Tensor, bias: Tensor | None, place: int) -> Tensor:
    """Add one of three parts of a bias, which is used whole: its parts would not be seen."""
    if bias is None:
        return x
    room = x.new_zeros(*x.shape[:-1], 3 * x.shape[-1])
    return x + (room + bias).chunk(3, -1)[place]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Turn ``(T, N, C)`` into ``(N, H, T, C / H)``."""
    return x.reshape(*x.shape[:2], heads, -1).permute(1, 2, 0, 3)


def _mask(mask: Tensor | None, padding: Tensor | None, q: Tensor, source: int) -> Tensor | None:
    """Bring both masks into one that is added, shape ``(N or 1, H or 1, T or 1, S)``."""
    total: Any = None
    if mask is not None:
        total = _added(mask, q.dtype)
        total = total[None, None] if mask.dim() == 2 else total.view(*q.shape[:3], source)
    if padding is not None:
        own = _added(padding, q.dtype)[:, None, None]
        total = own if total is None else total + own
    found: Tensor | None = total
    return found


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
