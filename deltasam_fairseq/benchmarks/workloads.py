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
        target: Tokens of the shortest and the longest target; those of the
            sentences when left out.
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
        flags: Its command line for ``fairseq-train``, data and method apart.
        shape: Size of the batch.
        width: Of the model's layers.
        positions: Tokens of the longest sentence that the model takes.
        paired: Whether there are targets, and not classes.
        opened: Tokens that the task puts before each sentence.
    """

    flags: tuple[str, ...]
    shape: Shape
    width: int
    positions: int
    paired: bool = False
    opened: int = 0

    def ordered(self, sentences: int = 0, tokens: int = 0) -> Workload:
        """Return the same model on a batch of another shape.

        Args:
            sentences: How many; 0: as it is.
            tokens: Tokens of each sentence as the model sees it, and of each target;
                0: as it is.

        Returns:
            The workload.
        """
        shape = self.shape
        if sentences:
            shape = replace(shape, sentences=sentences)
        if tokens:
            own = tokens - self.opened
            shape = replace(shape, shortest=own, longest=own, target=None)
        return replace(self, shape=shape)


_COMMON = (
    "--lr 1e-4 --dropout 0.1 --num-workers 0 --no-save --disable-validation "
    "--required-batch-size-multiple 1 "
)
_ENCODER = (
    "--encoder-layers {0} --encoder-embed-dim {1} --encoder-ffn-embed-dim {2} "
    "--encoder-attention-heads {3} "
)
_DECODER = _ENCODER.replace("encoder", "decoder")
_PAIRS = (
    _COMMON + "--task translation --source-lang src --target-lang tgt "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --share-all-embeddings "
)
_TRANSLATION = _PAIRS + "--arch transformer " + _ENCODER + _DECODER
_BART = _PAIRS + "--arch bart_large --attention-dropout 0.1 "
_SENTENCES = (
    _COMMON + "--task sentence_prediction --criterion sentence_prediction --num-classes 2 "
    "--init-token 0 "
)
_CLASSIFICATION = (
    _SENTENCES + "--arch roberta_base --separator-token 2 --max-positions 128 " + _ENCODER
)
_ROBERTA = (
    _SENTENCES + "--arch roberta_large --separator-token 2 --max-positions 512 "
    "--attention-dropout 0.1 "
)
_BERT = _SENTENCES + "--max-positions 512 --attention-dropout 0.1 --arch "

# Layers, width, inner width and heads of the models that are there to see that it works.
_TINY = (1, 16, 32, 2)
_FEW = Shape(4, 3, 6, 50)
# Of the models that are there to be counted: all layers, of this width. So short sentences
# keep the products of their rows thin, as the usual ones do at the usual widths.
_NARROW = 128

# Vocabularies have the size of the published ones: 30,522 and 50,265 with the special
# tokens, of which fairseq adds four and these tasks one more; BART's has no mask.
_BERT_WORDS = 30522 - 5
_ROBERTA_WORDS = 50265 - 5
_BART_WORDS = 50264 - 4


def _pairs(flags: str, shape: Shape, width: int, positions: int = 1024) -> Workload:
    return Workload(tuple(flags.split()), shape, width, positions, paired=True)


def _labelled(flags: str, shape: Shape, width: int, positions: int) -> Workload:
    return Workload(tuple(flags.split()), shape, width, positions, opened=1)


def _bert(arch: str, width: int) -> dict[str, Workload]:
    # Of exactly 64 tokens: 63 and the start marker.
    full = Shape(16, 63, 63, _BERT_WORDS)
    return {
        "default": _labelled(_BERT + arch, full, width, 512),
        "tiny": _labelled(f"{_BERT}{arch} {_ENCODER.format(*_TINY)}", _FEW, 16, 512),
    }


def _narrow(workload: Workload, shape: Shape = _FEW) -> Workload:
    sides = ("encoder", "decoder") if workload.paired else ("encoder",)
    sizes = f"-embed-dim {_NARROW} --X-ffn-embed-dim {2 * _NARROW} --X-attention-heads 2"
    flags = " ".join(f"--X{sizes}".replace("X", side) for side in sides)
    return replace(workload, flags=(*workload.flags, *flags.split()), shape=shape, width=_NARROW)


# By model, then size. The numbers are layers, width, inner width and heads.
_SIZES: dict[str, dict[str, Workload]] = {
    "translation": {
        "default": _pairs(_TRANSLATION.format(6, 256, 1024, 4), Shape(16, 64, 128, 8000), 256),
        "tiny": _pairs(_TRANSLATION.format(*_TINY), _FEW, 16),
    },
    "classification": {
        "default": _labelled(
            _CLASSIFICATION.format(6, 384, 1536, 6), Shape(16, 32, 64, 8000), 384, 128
        ),
        "tiny": _labelled(_CLASSIFICATION.format(*_TINY), _FEW, 16, 128),
    },
    "minilm": _bert("deltasam_bert_minilm_l6", 384),
    "bert_base": _bert("deltasam_bert_base", 768),
    # For GPUs: five trainers of these do not fit the memory of a small machine.
    "roberta_large": {
        "default": _labelled(_ROBERTA, Shape(16, 127, 127, _ROBERTA_WORDS), 1024, 512),
        "tiny": _labelled(_ROBERTA + _ENCODER.format(*_TINY), _FEW, 16, 512),
    },
    "bart_large": {
        "default": _pairs(_BART, Shape(2, 1024, 1024, _BART_WORDS, (128, 128)), 1024),
        "tiny": _pairs(_BART + (_ENCODER + _DECODER).format(*_TINY), _FEW, 16),
    },
}
# A target of 128 tokens is short at BART's width and a source of 1024 is long; so are these.
_NARROW_SHAPES = {"bart_large": Shape(4, 73, 73, 50, (5, 5))}
WORKLOADS: Mapping[str, Mapping[str, Workload]] = {
    model: {**sizes, "narrow": _narrow(sizes["default"], _NARROW_SHAPES.get(model, _FEW))}
    for model, sizes in _SIZES.items()
}
