"""The folders that ``deltasam prepare`` makes and every later step reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from deltasam_fairseq.data.aligned import read_lines
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_marker

Folder = TypeVar("Folder", bound="PreparedFolder")

SOURCE, TARGET = "source", "target"
SPLITS = ("train", "valid", "test")
#: Every ``kind`` of pairs of texts, with that of folders from before the demo was an example.
_PAIRS = ("text", "cnndm", "docstrings")


@dataclass(frozen=True)
class PreparedFolder(ABC):
    """A folder that is finished when it holds its marker, a JSON file that is written last.

    Args:
        path: The folder.
        facts: Content of the marker.
    """

    path: Path
    facts: dict[str, Any]

    MARKER: ClassVar[str]

    @classmethod
    def load(cls: type[Folder], path: Path) -> Folder:
        """Open a folder; one that is unfinished, damaged or of another kind is an error."""
        found = cls(path, read_marker(path / cls.MARKER, cls._unfinished(path)))
        found._require_whole()
        return found

    @classmethod
    @abstractmethod
    def _unfinished(cls, path: Path) -> str:
        """Say that a folder has no marker, and how to make one."""

    @abstractmethod
    def _require_whole(self) -> None:
        """Check what the marker says."""


class PreparedCorpus(PreparedFolder):
    """Text, tokens and binary files.

    =================  ========================================================
    ``raw/``           the checked text, one file for each column of a split
    ``pieces/``        the text in tokens, cut to length
    ``bin/``           what fairseq reads
    ``prepared.json``  how it was made; written last
    =================  ========================================================

    ``facts`` has at least ``kind``, ``inputs``, ``settings``, ``sha256`` and ``versions``.
    """

    MARKER = "prepared.json"

    @property
    @abstractmethod
    def holds(self) -> str:
        """What the data are for, compared with what a recipe is for."""

    @property
    def binary(self) -> Path:
        """Folder to give to fairseq's programs."""
        return self.path / "bin"

    @property
    def sha256(self) -> str:
        """Hash over the text of all splits and what cut it into tokens."""
        return str(self.facts["sha256"])

    def raw(self, split: str, column: str) -> Path:
        """Return the file with the text of one column of a split."""
        return self.path / "raw" / f"{split}.{column}"

    def pieces(self, split: str, column: str) -> Path:
        """Return the file with the tokens of one column of a split."""
        return self.path / "pieces" / f"{split}.{column}"

    def texts(self, split: str, column: str) -> list[str]:
        """Read the text of one column of a split."""
        return read_lines(self.raw(split, column))


class PreparedData(PreparedCorpus):
    """Pairs of texts, with the columns ``source`` and ``target``.

    ``facts`` has ``pairs`` by split, ``pieces`` (their number) and, if that is ``gpt2``, ``bpe``.
    Beside the files of every corpus there is ``sentencepiece.model``, or ``gpt2/``: GPT-2's BPE
    and dictionary.
    """

    @property
    def holds(self) -> str:
        """Every corpus of pairs is for every recipe on pairs."""
        return "texts to generate"

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

    @classmethod
    def _unfinished(cls, path: Path) -> str:
        return (
            f"{path} is not a finished data folder (it has no {cls.MARKER}); make one with: "
            f"deltasam prepare RECIPE --out {path} …"
        )

    def _require_whole(self) -> None:
        kind = self.facts.get("kind")
        if kind not in _PAIRS:
            raise UserError(
                f"{self.path} was made for {self.facts.get('task', kind)}, not for texts to "
                "generate; give the folder that deltasam prepare made for this recipe"
            )


class PreparedCheckpoint(PreparedFolder):
    """A model that fairseq can start from.

    ``facts`` has at least ``sizes`` by flag of fairseq, and ``bytes`` and ``sha256`` of
    ``model.pt``.
    """

    #: Its flag of ``deltasam train``, and what ``deltasam prepare`` calls it.
    NAME: ClassVar[str]
    #: What a recipe that starts from one says if there is none.
    MISSING: ClassVar[str]

    @property
    def checkpoint(self) -> Path:
        """The file for ``--restore-file``."""
        return self.path / "model.pt"

    @abstractmethod
    def require_fit(self, flags: Mapping[str, str], data: PreparedCorpus) -> None:
        """Check that it fits the model of a command and the tokens of its data."""

    @abstractmethod
    def _command(self) -> str:
        """Return the command that makes it."""

    def _require_whole(self) -> None:
        size = self.checkpoint.stat().st_size if self.checkpoint.is_file() else None
        if size != self.facts["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes, not {self.facts['bytes']}"
            raise UserError(
                f"{self.checkpoint} {state}; make {self.path} anew with: {self._command()}"
            )

    def _require_sizes(self, wanted: Mapping[str, object], *, model: str, advice: str) -> None:
        """Check that the checkpoint has the sizes of a model."""
        sizes = self.facts["sizes"]
        different = {
            name: value for name, value in wanted.items() if str(sizes[name]) != str(value)
        }
        if different:
            listed = (
                f"{name} is {sizes[name]}, the model's is {value}"
                for name, value in different.items()
            )
            first = next(iter(different))
            raise UserError(
                f"{self.checkpoint} does not fit {model}: {'; '.join(listed)}. {advice}, as in: "
                f"--{first} {sizes[first]}"
            )
