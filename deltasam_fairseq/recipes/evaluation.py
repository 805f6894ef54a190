"""What a user asks of ``deltasam evaluate``, and what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasam_fairseq.choices import PRECISIONS
from deltasam_fairseq.evaluation.rouge import PROGRAMS, SPLITTERS, TOKENIZATIONS
from deltasam_fairseq.recipes.command import precision_flags
from deltasam_fairseq.recipes.methods import Flags
from deltasam_fairseq.settings import setting

#: Values of ``--decode-bos``, and the flags of fairseq that each stands for.
DECODE_BOS: dict[str, Flags] = {
    # What the decoder sees is what it saw in training: no <s> on either side.
    "train_consistent": {},
    # What bart.sample of fairseq's hub does: <s> before the source and before the hypothesis.
    "hub": {"task": "deltasam_translation_bos"},
}


@dataclass(frozen=True)
class EvaluationOptions:
    """How to run a checkpoint over a split and score it; each kind of data takes what it knows."""

    split: str | None = setting(
        "default: test, and valid for tasks on sentences; test1 and valid1 are MNLI's second",
        None,
        choices=("test", "valid", "test1", "valid1"),
    )
    cpu: bool = setting("tasks on sentences: leave a GPU alone", False)
    beam: int | None = setting("default: the recipe's", None)
    sts: Path | None = setting(
        "sentences to embed: the folder of deltasam prepare sts; default: data/sts", None
    )
    data: Path | None = setting("where the data folder is now, if it was moved", None)
    sentence_split: str | None = setting(
        "how ROUGE-Lsum tells sentences apart; default: the recipe's",
        None,
        choices=tuple(SPLITTERS),
    )
    tokenization: str | None = setting(
        "how ROUGE cuts sentences into words; default: the recipe's",
        None,
        choices=tuple(TOKENIZATIONS),
    )
    like: str | None = setting("whose ROUGE; default: the recipe's", None, choices=tuple(PROGRAMS))
    decode_bos: str = setting(
        "whether the model meets <s> as in training (not at all), or as in bart.sample of "
        "fairseq's hub: before the source and before the summary (%(default)s)",
        "train_consistent",
        choices=tuple(DECODE_BOS),
    )
    precision: str | None = setting("default: the recipe's", None, choices=PRECISIONS)
    processes: int = setting(
        "decode so many parts at a time, each on a GPU of its own if there are GPUs "
        "(%(default)s); the result does not depend on it",
        1,
    )
    force: bool = setting("replace results of another checkpoint", False)
    extra: Sequence[str] = ()

    @property
    def overrides(self) -> list[str]:
        """Flags of fairseq-generate, as typed."""
        return [*(["--beam", str(self.beam)] if self.beam else []), *self.extra]

    def decoding(self) -> Flags:
        """Return the flags of fairseq-generate that the other choices stand for."""
        return {**precision_flags(self.precision), **DECODE_BOS[self.decode_bos]}

    def rouge(self) -> dict[str, str]:
        """Return the settings of ``rouge_scores`` that were given."""
        given = {
            "split": self.sentence_split,
            "tokenization": self.tokenization,
            "like": self.like,
        }
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Evaluation:
    """What to print: lines, and with ``in_table`` the table that ``deltasam table`` makes."""

    split: str
    lines: tuple[str, ...] = ()
    in_table: bool = False
