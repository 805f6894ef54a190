"""The one door for noise on the embeddings, of any of fairseq's transformer encoders.

FreeLB, R3F, SMART and Mirror-BERT shift the encoder's word embeddings. The encoder looks
them up in ``forward_embedding``, which RoBERTa, BART, ``transformer`` and this plugin's BERT
share. For the length of a block a function on the encoder object stands in for that
method. A hook on the table of embeddings would not do: where encoder and decoder share the
table, the decoder's inputs would move as well. ``token_embeddings=`` would not do either:
RoBERTa ignores it, and ``transformer`` does not know it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from fairseq.models.transformer import TransformerEncoderBase
from torch import Tensor

from deltasam_fairseq.fairseq_plugin.passes import standing_in

# Takes the part of the noise that belongs to what is encoded.
_part: ContextVar[Callable[[Tensor], Tensor]] = ContextVar("part", default=lambda noise: noise)


def unwrapped(model: Any) -> Any:
    """Take what wraps a model for several workers off it."""
    while "module" in model._modules:  # DistributedDataParallel and fairseq's proxies
        model = model._modules["module"]
    return model


def encoder_of(model: Any) -> Any:
    """Find the encoder whose embeddings can be shifted.

    Args:
        model: A model, perhaps wrapped for several workers.

    Returns:
        Its transformer encoder.

    Raises:
        ValueError: If it has none of fairseq's.
    """
    model = unwrapped(model)
    encoder = getattr(model, "encoder", None)
    encoder = getattr(encoder, "sentence_encoder", encoder)  # RoBERTa's and BERT's
    if not isinstance(encoder, TransformerEncoderBase):
        found = "none" if encoder is None else type(encoder).__name__
        raise ValueError(
            f"noise on the embeddings needs one of fairseq's transformer encoders, and "
            f"{type(model).__name__} has {found}; use a model such as roberta, bart, "
            "transformer or deltasam_bert"
        )
    return encoder


def embeddings_shape(model: Any, src_tokens: Tensor) -> torch.Size:
    """Tell the shape of the noise for a batch.

    Args:
        model: A model that :func:`encoder_of` knows.
        src_tokens: The encoder's tokens, shape ``(N, T)``.

    Returns:
        ``(N, T, D)``.
    """
    return torch.Size([*src_tokens.shape, encoder_of(model).embed_tokens.embedding_dim])


@contextmanager
def embedding_noise(
    model: Any, noise: Tensor, *, every_view: bool = False
) -> Generator[None, None, None]:
    """Shift the word embeddings of the encoder in the forward passes of a block.

    The encoder gets ``s * (e + noise)`` for ``s * e``, before positions, segments, layer
    normalisation and dropout; s is 1 in RoBERTa, BART and BERT, and the square root of D in
    ``transformer`` unless ``--no-scale-embedding`` is given. The sum is computed in float32, or
    float64 where the model is, and rounded once to the model's precision. Noise on padding
    is left out, so that it has no gradient either. Blocks may be nested: noises add up.

    Args:
        model: A model that :func:`encoder_of` knows, perhaps wrapped for several workers.
        noise: Shape ``(N, T, D)``, float32 or wider; it may require a gradient.
        every_view: Whether a forward pass of ``k N`` sentences, the batch repeated k times by
            ``Tensor.repeat``, gets the noise k times.

    Yields:
        Nothing.

    State:
        The encoder has its own method again afterwards, also after an exception.

    Refusals:
        ``ValueError`` if the model has no such encoder; at the forward pass, if the noise is
        not of the embeddings' shape.
    """
    encoder = encoder_of(model)
    embed = encoder.forward_embedding

    def forward_embedding(
        src_tokens: Tensor, token_embedding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        plain = encoder.embed_tokens(src_tokens) if token_embedding is None else token_embedding
        part = _part.get()(noise)
        if not len(part):
            return embed(src_tokens, plain)  # type: ignore[no-any-return]
        views = len(plain) // len(part) if every_view else 1
        shift = part.repeat(views, 1, 1)
        if shift.shape != plain.shape:
            raise ValueError(
                f"the noise has shape {tuple(part.shape)}, but the embeddings of this batch have "
                f"{tuple(plain.shape)}; make it with embeddings_shape"
            )
        words = src_tokens.ne(encoder.padding_idx).unsqueeze(-1)
        wide = torch.promote_types(plain.dtype, torch.float32)
        shift = torch.where(words, shift, torch.zeros_like(shift)).to(wide)
        found: tuple[Tensor, Tensor] = embed(src_tokens, (plain.to(wide) + shift).to(plain.dtype))
        return found

    with standing_in(encoder, forward_embedding=forward_embedding):
        yield


@contextmanager
def noise_rows(rows: slice | Tensor, width: int | None = None) -> Generator[None, None, None]:
    """Encode a part of a batch in a block, with the noise of its rows; blocks may be nested.

    Args:
        rows: Which of the noise's first dimension; ``slice(0)`` where the part has none.
        width: Positions of the part, if it is cut to fewer than the batch has.

    Yields:
        Nothing.
    """
    outer = _part.get()

    def part(noise: Tensor) -> Tensor:
        noise = outer(noise)
        return noise[rows, :width] if len(noise) else noise

    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)
