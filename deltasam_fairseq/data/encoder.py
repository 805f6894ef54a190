"""The folder of a pretrained encoder: what to fine-tune, and the vocabulary of its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltasam_fairseq.data.prepared import PreparedCheckpoint, PreparedCorpus
from deltasam_fairseq.errors import UserError

BERT, ROBERTA = "bert", "roberta"

#: What of a BERT's facts its tokens depend on, beside the vocabulary.
CUTTING = ("lowercase", "strip_accents", "split_chinese")

#: Flags of fairseq that size an encoder.
SIZES = (
    "encoder-layers",
    "encoder-embed-dim",
    "encoder-ffn-embed-dim",
    "encoder-attention-heads",
    "max-positions",
)


def _sizes(layers: int, width: int, heads: int) -> dict[str, int]:
    return dict(zip(SIZES, (layers, width, 4 * width, heads, 512), strict=True))


#: Sizes by fairseq's name of the architecture.
ARCHITECTURES: Mapping[str, Mapping[str, int]] = {
    "roberta_base": _sizes(12, 768, 12),
    "roberta_large": _sizes(24, 1024, 16),
    "deltasam_bert_base": _sizes(12, 768, 12),
    "deltasam_bert_large": _sizes(24, 1024, 16),
    "deltasam_bert_minilm_l6": _sizes(6, 384, 12),
}


class PreparedEncoder(PreparedCheckpoint):
    """A BERT or a RoBERTa to fine-tune, with its vocabulary.

    Beside ``model.pt`` there are ``dict.txt`` and ``vocab.txt`` (BERT) or ``gpt2/`` (RoBERTa).
    ``facts`` has ``family``, ``source``, ``sizes``, ``rows``, ``dict_sha256``, ``head`` (``tasks``
    that may start from it, ``classes``, ``note``); of a BERT also ``lowercase`` and
    ``lowercase_from``, ``strip_accents``, ``split_chinese`` and ``pooler`` (whether the checkpoint
    has one).
    """

    MARKER = "model.json"
    NAME = "encoder"
    MISSING = (
        "fine-tunes an encoder: give --model NAME, and --encoder DIR if it is not in models/NAME"
    )

    @property
    def dictionary(self) -> Path:
        """The dictionary to binarize with."""
        return self.path / "dict.txt"

    @property
    def is_bert(self) -> bool:
        """Whether it is a BERT, with WordPiece and segments."""
        return bool(self.facts["family"] == BERT)

    @property
    def cutting(self) -> dict[str, bool]:
        """How text is cut, beside the vocabulary; empty for a RoBERTa."""
        return {name: self.facts[name] for name in CUTTING} if self.is_bert else {}

    def require_fit(self, flags: Mapping[str, str], data: PreparedCorpus) -> None:
        """Check architecture, vocabulary and head.

        Raises:
            UserError: If one of them does not fit.
        """
        self._require_architecture(flags.get("arch", ""), flags)
        wanted = {"dict.txt": self.facts["dict_sha256"], **self.cutting}
        for name, value in wanted.items():
            if data.facts["settings"].get(name) != value:
                kind = "vocabulary" if name == "dict.txt" else f"value of {name}"
                raise UserError(
                    f"{data.path} was prepared with another {kind} than that of {self.path}; "
                    f"prepare it with: deltasam prepare RECIPE --encoder {self.path} … --force"
                )
        tasks, classes = self.facts["head"]["tasks"], self.facts["head"]["classes"]
        as_many = flags.get("num-classes", "2") == str(len(classes))
        if tasks and as_many and data.holds not in tasks:
            raise UserError(
                f"{self.path} has a head for {' and '.join(tasks)}, with as many classes as "
                f"{data.holds}, which would start from it; make it without: deltasam "
                f"prepare encoder {self.facts['source']} --new-head --out {self.path} --force"
            )

    def _require_architecture(self, arch: str, flags: Mapping[str, str]) -> None:
        family = BERT if arch.startswith("deltasam_bert") else ROBERTA
        if family != self.facts["family"]:
            raise UserError(
                f"{self.path} holds a {self.facts['family']}, but --arch {arch} is a {family}; "
                "give another --model or another --encoder"
            )
        wanted: dict[str, object] = {**ARCHITECTURES.get(arch, {})}
        wanted |= {name: flags[name] for name in SIZES if name in flags}
        advice = "Give the model of that size with --model, or its sizes as flags"
        self._require_sizes(wanted, model=f"--arch {arch}", advice=advice)

    def _command(self) -> str:
        return f"deltasam prepare encoder CHECKPOINT --out {self.path} --force"

    @classmethod
    def _unfinished(cls, path: Path) -> str:
        return (
            f"{path} is no encoder made by deltasam (it has no {cls.MARKER}); make one with: "
            f"deltasam prepare encoder CHECKPOINT --out {path}"
        )
