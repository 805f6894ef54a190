"""The folder that preparing a task on sentences makes, and every later step reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.data.json_file import read_json
from deltasam_fairseq.data.prepared import MARKER, SENTENCES
from deltasam_fairseq.errors import UserError


@dataclass(frozen=True)
class PreparedSentences:
    """A task's sentences as fairseq's ``sentence_prediction`` reads them.

    =====================  ====================================================
    ``raw/``               ``train.input0``, ``train.input1``, ``train.label``, …
    ``pieces/``            the sentences in tokens, cut to length
    ``bin/``               ``input0``, ``input1`` and ``label``
    ``prepared.json``      how it was made; written last
    =====================  ====================================================

    Args:
        path: The folder.
        facts: Content of ``prepared.json``: ``kind``, ``task``, ``inputs``, ``settings``,
            ``rows`` by split, ``malformed`` by split, ``sha256``, ``versions``.
    """

    path: Path
    facts: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> PreparedSentences:
        """Open a finished folder.

        Args:
            path: The folder.

        Returns:
            It.

        Raises:
            UserError: If it is unfinished or of another kind.
        """
        try:
            facts = read_json(path / MARKER)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path} is not a finished data folder (it has no {MARKER}); make one with: "
                f"deltasam prepare RECIPE --glue DIR --model NAME --out {path}"
            ) from None
        if facts.get("kind") != SENTENCES:
            raise UserError(
                f"{path} was made for {facts.get('kind')}, not for a task on sentences; give "
                "the folder that deltasam prepare made for this recipe"
            )
        return cls(path, facts)

    @property
    def binary(self) -> Path:
        """Folder to give to ``fairseq-train``."""
        return self.path / "bin"

    @property
    def sha256(self) -> str:
        """Hash over sentences, labels and dictionary."""
        return str(self.facts["sha256"])

    def raw(self, split: str, column: str) -> Path:
        """Return a file of text: ``input0``, ``input1`` or ``label`` of a split."""
        return self.path / "raw" / f"{split}.{column}"

    def pieces(self, split: str, column: str) -> Path:
        """Return a file of tokens."""
        return self.path / "pieces" / f"{split}.{column}"

    def require_split(self, split: str) -> None:
        """Check that a split is there.

        Args:
            split: Its name.

        Raises:
            UserError: If it is not.
        """
        if split not in self.facts["rows"]:
            raise UserError(
                f"{self.path} has no split {split!r}; it has {', '.join(self.facts['rows'])}"
            )

    def labels(self, split: str) -> list[str]:
        """Read the labels of a split, as its authors' file has them.

        Args:
            split: Its name.

        Returns:
            One per row.

        Raises:
            UserError: If it has none.
        """
        self.require_split(split)
        path = self.raw(split, "label")
        if not path.is_file():
            raise UserError(f"{self.path}: {split} has no labels, only sentences")
        return read_lines(path)
