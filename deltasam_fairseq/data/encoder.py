"""The folder of a pretrained encoder: what to fine-tune, and the vocabulary of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.json_file import read_json
from deltasam_fairseq.errors import UserError

ENCODER_MARKER = "model.json"
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


@dataclass(frozen=True)
class PreparedEncoder:
    """A checkpoint that fairseq can start from, with its vocabulary.

    Args:
        path: The folder: ``model.pt``, ``dict.txt``, ``vocab.txt`` (BERT) or ``gpt2/``
            (RoBERTa) and, written last, ``model.json``.
        facts: Content of ``model.json``: ``family``, ``source``, ``sizes``, ``rows``,
            ``dict_sha256``, ``head`` (``tasks`` that may start from it, ``classes``, ``note``),
            ``bytes`` and ``sha256`` of ``model.pt``; of a BERT also ``lowercase`` and
            ``lowercase_from``, ``strip_accents``, ``split_chinese`` and ``pooler`` (whether
            the checkpoint has one).
    """

    path: Path
    facts: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> PreparedEncoder:
        """Open a finished folder.

        Args:
            path: The folder.

        Returns:
            It.

        Raises:
            UserError: If it is unfinished, or its checkpoint is not the one that was written.
        """
        try:
            facts = read_json(path / ENCODER_MARKER)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path} is no encoder made by deltasam (it has no {ENCODER_MARKER}); make one "
                f"with: deltasam prepare encoder CHECKPOINT --out {path}"
            ) from None
        found = cls(path, facts)
        size = found.checkpoint.stat().st_size if found.checkpoint.is_file() else None
        if size != facts["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes, not {facts['bytes']}"
            raise UserError(
                f"{found.checkpoint} {state}; make {path} anew with: deltasam prepare encoder "
                f"CHECKPOINT --out {path} --force"
            )
        return found

    @property
    def checkpoint(self) -> Path:
        """The file for ``--restore-file``."""
        return self.path / "model.pt"

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

    def require_architecture(self, arch: str, flags: Mapping[str, str]) -> None:
        """Check that the checkpoint fits a model.

        Args:
            arch: Name of the architecture.
            flags: Of the command; sizes among them replace the architecture's.

        Raises:
            UserError: If it does not.
        """
        family = BERT if arch.startswith("deltasam_bert") else ROBERTA
        if family != self.facts["family"]:
            raise UserError(
                f"{self.path} holds a {self.facts['family']}, but --arch {arch} is a {family}; "
                "give another --model or another --encoder"
            )
        wanted = {**ARCHITECTURES.get(arch, {})}
        wanted |= {name: int(flags[name]) for name in SIZES if name in flags}
        sizes = self.facts["sizes"]
        different = [
            f"{name} is {sizes[name]}, the model's is {value}"
            for name, value in wanted.items()
            if sizes[name] != value
        ]
        if different:
            raise UserError(
                f"{self.checkpoint} does not fit --arch {arch}: {'; '.join(different)}. Give the "
                "model of that size with --model, or its sizes as flags, as in: "
                f"--{different[0].split()[0]} {sizes[different[0].split()[0]]}"
            )
