"""The folder that ``deltasam prepare`` makes and every later step reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.data.json_file import read_json
from deltasam_fairseq.errors import UserError

MARKER = "prepared.json"
#: The ``kind`` of data that have labels in the place of targets.
SENTENCES = "sentences"
SOURCE, TARGET = "source", "target"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class PreparedData:
    """Text, pieces and binary files of one corpus.

    =====================  ====================================================
    ``raw/``               the checked text, ``train.source``, ``train.target``, …
    ``sentencepiece.*``    the piece model, or ``gpt2/``: GPT-2's BPE and dictionary
    ``pieces/``            the text in pieces, cut to length
    ``bin/``               what fairseq reads
    ``prepared.json``      how it was made; written last
    =====================  ====================================================

    Args:
        path: The folder.
        facts: Content of ``prepared.json``: ``kind``, ``inputs``, ``settings``,
            ``pairs``, ``pieces``, ``sha256``, ``versions``, and ``bpe`` if that is ``gpt2``.
    """

    path: Path
    facts: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> PreparedData:
        """Open a finished folder.

        Args:
            path: The folder.

        Returns:
            It.

        Raises:
            UserError: If ``deltasam prepare`` did not finish it, or made it for sentences.
        """
        try:
            facts = read_json(path / MARKER)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path} is not a finished data folder (it has no {MARKER}); make one with: "
                f"deltasam prepare text --out {path} …"
            ) from None
        if facts.get("kind") == SENTENCES:
            raise UserError(
                f"{path} was made for {facts['task']}, not for texts to generate; give the folder "
                "that deltasam prepare made for this recipe"
            )
        return cls(path, facts)

    @property
    def binary(self) -> Path:
        """Folder to give to ``fairseq-train`` and ``fairseq-generate``."""
        return self.path / "bin"

    @property
    def model(self) -> Path:
        """The sentencepiece model."""
        return self.path / "sentencepiece.model"

    @property
    def is_gpt2(self) -> bool:
        """Whether the pieces are those of GPT-2's BPE, not of a sentencepiece model."""
        return self.facts.get("bpe") == "gpt2"

    def gpt2(self, name: str) -> Path:
        """Return a file of GPT-2's BPE: ``encoder.json``, ``vocab.bpe`` or ``dict.txt``."""
        return self.path / "gpt2" / name

    @property
    def sha256(self) -> str:
        """Hash over the text of all splits and what cut it into pieces."""
        return str(self.facts["sha256"])

    def raw(self, split: str, side: str) -> Path:
        """Return the file with the text of one side of a split."""
        return self.path / "raw" / f"{split}.{side}"

    def pieces(self, split: str, side: str) -> Path:
        """Return the file with the pieces of one side of a split."""
        return self.path / "pieces" / f"{split}.{side}"

    def texts(self, split: str, side: str) -> list[str]:
        """Read the text of one side of a split.

        Args:
            split: ``train``, ``valid`` or ``test``.
            side: ``source`` or ``target``.

        Returns:
            One text per example.
        """
        return read_lines(self.raw(split, side))
