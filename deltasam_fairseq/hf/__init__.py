"""Sharpness-aware training in Hugging Face's Trainer (``docs/hugging_face.md``)."""

from deltasam_fairseq.hf.arguments import SharpnessArguments
from deltasam_fairseq.hf.trainer import (
    SharpnessAware,
    SharpnessAwareSeq2SeqTrainer,
    SharpnessAwareTrainer,
)

__all__ = [
    "SharpnessArguments",
    "SharpnessAware",
    "SharpnessAwareSeq2SeqTrainer",
    "SharpnessAwareTrainer",
]
