"""The models that are measured, with their flags for ``fairseq-train`` and their batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """Size of a data set.

    Args:
        sentences: Number of sentences, or of pairs.
        shortest: Tokens of the shortest sentence, its end marker included.
        longest: Tokens of the longest.
        words: Number of different words.
        target: Tokens of the shortest and the longest target; those of the sentences when
            left out.
    """

    sentences: int
    shortest: int
    longest: int
    words: int
    target: tuple[int, int] | None = None


@dataclass(frozen=True)
class Workload:
    """One model on one batch.

    Args:
        flags: Its command line for ``fairseq-train``, without data and variant.
        shape: Size of the batch.
        width: Of the model's layers.
        positions: Tokens of the longest sentence that the model takes.
        paired: Whether there are targets, and not classes.
        opened: Tokens that the task puts before each sentence.
    """

    flags: str
    shape: Shape
    width: int
    positions: int
    paired: bool = False
    opened: int = 0

    def ordered(self, sentences: int = 0, tokens: int = 0) -> Workload:
        """Return the same model on a batch of another shape; 0 leaves a number as it is.

        Args:
            sentences: How many.
            tokens: Tokens of each sentence as the model sees it, and of each target.
        """
        shape = self.shape
        if sentences:
            shape = replace(shape, sentences=sentences)
        if tokens:
            own = tokens - self.opened
            shape = replace(shape, shortest=own, longest=own, target=None)
        return replace(self, shape=shape)

    def resized(self, shape: Shape, width: int, layers: int = 0) -> Workload:
        """Return the model with layers of another width, or with fewer, on another batch.

        Args:
            shape: Of the batch.
            width: Of the layers; the inner width is twice as much, and there are two heads.
            layers: On each side; 0: as many as there are.
        """
        flags = self.flags
        for side in ("encoder", "decoder") if self.paired else ("encoder",):
            # Of two equal flags the later one counts.
            flags += f" --{side}-embed-dim {width} --{side}-ffn-embed-dim {2 * width}"
            flags += f" --{side}-attention-heads 2"
            flags += f" --{side}-layers {layers}" if layers else ""
        return replace(self, flags=flags, shape=shape, width=width)


_COMMON = (
    "--lr 1e-4 --dropout 0.1 --num-workers 0 --no-save --disable-validation "
    "--required-batch-size-multiple 1"
)
_PAIRS = (
    f"{_COMMON} --task translation --source-lang src --target-lang tgt "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --share-all-embeddings"
)
_SENTENCES = (
    f"{_COMMON} --task sentence_prediction --criterion sentence_prediction --num-classes 2 "
    "--init-token 0"
)
_ROBERTA = f"{_SENTENCES} --separator-token 2"
_BERT = f"{_SENTENCES} --max-positions 512 --attention-dropout 0.1"

# Vocabularies have the size of the published ones: 30,522 and 50,265 with the special
# tokens, of which fairseq adds four and these tasks one more; BART's has no mask.
# BERT's sentences have 64 tokens, and RoBERTa's 128, with the start marker.
_BERT_SHAPE = Shape(16, 63, 63, words=30522 - 5)
_ROBERTA_SHAPE = Shape(16, 127, 127, words=50265 - 5)
_BART_SHAPE = Shape(2, 1024, 1024, words=50264 - 4, target=(128, 128))

# roberta_large and bart_large are for GPUs: five trainers of these do not fit the memory of a
# small machine.
_MODELS = {
    "translation": Workload(
        f"{_PAIRS} --arch transformer --encoder-layers 6 --encoder-embed-dim 256 "
        "--encoder-ffn-embed-dim 1024 --encoder-attention-heads 4 --decoder-layers 6 "
        "--decoder-embed-dim 256 --decoder-ffn-embed-dim 1024 --decoder-attention-heads 4",
        Shape(16, 64, 128, words=8000),
        width=256,
        positions=1024,
        paired=True,
    ),
    "classification": Workload(
        f"{_ROBERTA} --arch roberta_base --max-positions 128 --encoder-layers 6 "
        "--encoder-embed-dim 384 --encoder-ffn-embed-dim 1536 --encoder-attention-heads 6",
        Shape(16, 32, 64, words=8000),
        width=384,
        positions=128,
        opened=1,
    ),
    "minilm": Workload(f"{_BERT} --arch deltasam_bert_minilm_l6", _BERT_SHAPE, 384, 512, opened=1),
    "bert_base": Workload(f"{_BERT} --arch deltasam_bert_base", _BERT_SHAPE, 768, 512, opened=1),
    "roberta_large": Workload(
        f"{_ROBERTA} --arch roberta_large --max-positions 512 --attention-dropout 0.1",
        _ROBERTA_SHAPE,
        width=1024,
        positions=512,
        opened=1,
    ),
    "bart_large": Workload(
        f"{_PAIRS} --arch bart_large --attention-dropout 0.1",
        _BART_SHAPE,
        width=1024,
        positions=1024,
        paired=True,
    ),
}

_FEW = Shape(4, 3, 6, words=50)
# Narrow models are counted. So short sentences keep the products of their rows thin, as the
# usual lengths do at the usual widths; BART's targets are short beside its sources.
_NARROW_SHAPES = {"bart_large": Shape(4, 73, 73, words=50, target=(5, 5))}

#: By model and size: ``default``; ``tiny``, to see that it works; ``narrow``, with all layers
#: and a width that makes a forward pass the work of Python.
WORKLOADS: Mapping[str, Mapping[str, Workload]] = {
    model: {
        "default": workload,
        "tiny": workload.resized(_FEW, width=16, layers=1),
        "narrow": workload.resized(_NARROW_SHAPES.get(model, _FEW), width=128),
    }
    for model, workload in _MODELS.items()
}
