"""BERT as a model of fairseq: RoBERTa's encoder with segments, a pooler and BERT's numbers.

fairseq's dictionary has ``<s> <pad> </s> <unk>`` first; they stand for ``[CLS] [PAD] [SEP]
[UNK]``, so ``--task sentence_prediction --init-token 0`` without a separator token makes
``[CLS] A [SEP] B [SEP]``. What lies behind the first ``[SEP]`` is the second segment.

BERT's head for masked words is left out: classification does not use it, and a
parameter without a gradient would need ``--find-unused-parameters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from fairseq.models.roberta.model import base_architecture
from fairseq.models.transformer import TransformerEncoder
from fairseq.modules import LayerNorm
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn

from deltasam_fairseq.data.encoder import ARCHITECTURES

_EPSILON = 1e-12
_HEADS = "classification_heads."


def segments(tokens: Tensor, *, separator: int, padding: int) -> Tensor:
    """Tell first and second sentences apart.

    Args:
        tokens: Shape ``(N, T)``.
        separator: Number of the token that ends a sentence.
        padding: Number of the padding token.

    Returns:
        Shape ``(N, T)``: 0 up to the first separator and on padding, 1 behind it.

    Example:
        >>> segments(torch.tensor([[0, 7, 2, 8, 2, 1]]), separator=2, padding=1)
        tensor([[0, 0, 0, 1, 1, 0]])
    """
    ends = tokens.eq(separator).long()
    second = (ends.cumsum(1) - ends).clamp(max=1)
    return second * tokens.ne(padding).long()


class SegmentEncoder(TransformerEncoder):
    """A transformer encoder that adds an embedding of the segment to that of the word."""

    def __init__(self, args: Any, dictionary: Any, embed_tokens: Any) -> None:
        super().__init__(args, dictionary, embed_tokens)
        self.separator = dictionary.eos()
        self.embed_segments = nn.Embedding(2, embed_tokens.embedding_dim)
        for module in self.modules():
            if isinstance(module, type(LayerNorm(1))):
                module.eps = _EPSILON

    def forward_embedding(
        self, src_tokens: Tensor, token_embedding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed words, segments and positions.

        Args:
            src_tokens: Shape ``(N, T)``.
            token_embedding: Embeddings of the words, if they are there already.

        Returns:
            What the first layer gets, and the sum without positions.
        """
        if token_embedding is None:
            token_embedding = self.embed_tokens(src_tokens)
        second = segments(src_tokens, separator=self.separator, padding=self.padding_idx)
        found: tuple[Tensor, Tensor] = super().forward_embedding(
            src_tokens, token_embedding + self.embed_segments(second)
        )
        return found


class BertEncoder(RobertaEncoder):
    """RoBERTa's encoder with segments and without a head for masked words."""

    def build_encoder(self, args: Any, dictionary: Any, embed_tokens: Any) -> SegmentEncoder:
        """Build the transformer."""
        encoder = SegmentEncoder(args, dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder

    def build_lm_head(self, *args: Any, **kwargs: Any) -> None:
        """Build none."""


class ClassificationHead(nn.Module):
    """Dropout and a linear layer on what the pooler makes of ``[CLS]``."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits, shape ``(N, C)``."""
        logits: Tensor = self.out_proj(self.dropout(pooled))
        return logits


@register_model("deltasam_bert")
class BertModel(RobertaModel):
    """BERT with heads for ``sentence_prediction``; the pooler is the pretrained one."""

    def __init__(self, args: Any, encoder: BertEncoder) -> None:
        super().__init__(args, encoder)
        self.pooler = nn.Linear(args.encoder_embed_dim, args.encoder_embed_dim)
        self.pooler.apply(init_bert_params)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> BertModel:
        """Build the model for a task; see fairseq's RobertaModel."""
        base_architecture(args)
        if getattr(args, "max_positions", None) is None:
            args.max_positions = task.max_positions()
        return cls(args, BertEncoder(args, task.source_dictionary))

    def forward(
        self,
        src_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Encode, and classify if a head is named.

        Args:
            src_tokens: Shape ``(N, T)``.
            features_only: Without effect: there are features or logits of a head.
            return_all_hiddens: Whether the extra output holds the states of all layers.
            classification_head_name: Which head to use.
            kwargs: Passed on to the encoder.

        Returns:
            Features ``(N, T, D)`` or logits ``(N, C)``, and the extra output.
        """
        del features_only
        features, extra = self.encoder(
            src_tokens, features_only=True, return_all_hiddens=return_all_hiddens, **kwargs
        )
        if classification_head_name is None:
            return features, extra
        pooled = torch.tanh(self.pooler(features[:, 0]))
        return self.classification_heads[classification_head_name](pooled), extra

    def register_classification_head(
        self, name: str, num_classes: int | None = None, inner_dim: int | None = None, **kwargs: Any
    ) -> None:
        """Add a head; ``inner_dim`` has no meaning here: the pooler keeps the width."""
        del inner_dim, kwargs
        self.classification_heads[name] = ClassificationHead(
            self.args.encoder_embed_dim, num_classes or 2, self.args.pooler_dropout
        )

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Fit the heads of a checkpoint to those of this model.

        Args:
            state_dict: Of the checkpoint; changed in place. Heads that this model has not, or
                of another size, go; those that it lacks are the model's own. So is the pooler
                where the checkpoint, of a model for masked words, has none.
            name: Where the model is in a larger one.
        """
        BaseFairseqModel.upgrade_state_dict_named(self, state_dict, name)
        prefix = f"{name}.{_HEADS}" if name else _HEADS
        heads = self.classification_heads.state_dict()
        own = {f"{prefix}{key}": value for key, value in heads.items()}
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if key not in own or own[key].shape != state_dict[key].shape:
                del state_dict[key]
        pooler = {f"{name}.{key}" if name else key: value for key, value in self._pooler().items()}
        if not any(key in state_dict for key in pooler):
            own |= pooler
        for key, value in own.items():
            state_dict.setdefault(key, value)

    def _pooler(self) -> dict[str, Tensor]:
        return {f"pooler.{key}": value for key, value in self.pooler.state_dict().items()}


def _sized(sizes: Mapping[str, int]) -> Any:
    def architecture(args: Any) -> None:
        for flag, value in sizes.items():
            name = flag.replace("-", "_")
            if name != "max_positions":  # the task's, if no flag says it
                setattr(args, name, getattr(args, name, value))
        args.pooler_dropout = getattr(args, "pooler_dropout", 0.1)
        base_architecture(args)

    return architecture


for _name, _sizes in ARCHITECTURES.items():
    if _name.startswith("deltasam_bert_"):
        register_model_architecture("deltasam_bert", _name)(_sized(_sizes))
