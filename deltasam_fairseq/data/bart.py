"""The folder that ``deltasam prepare bart`` makes: a model to fine-tune, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.json_file import read_json
from deltasam_fairseq.errors import UserError

BART_MARKER = "bart.json"
#: ``<s>``, ``<pad>``, ``</s>`` and ``<unk>`` stand before the words of every dictionary.
SPECIAL_SYMBOLS = 4

#: Flags of fairseq that size a BART model.
SIZES = (
    "encoder-layers",
    "decoder-layers",
    "encoder-embed-dim",
    "encoder-ffn-embed-dim",
    "decoder-ffn-embed-dim",
    "encoder-attention-heads",
    "decoder-attention-heads",
    "max-source-positions",
    "max-target-positions",
    "activation-fn",
)


def _sizes(layers: int, width: int, heads: int, positions: int) -> dict[str, int | str]:
    values: tuple[int | str, ...] = (
        *(layers, layers, width, 4 * width, 4 * width, heads, heads),
        *(positions, positions, "gelu"),
    )
    return dict(zip(SIZES, values, strict=True))


#: Sizes by fairseq's name of the architecture, and of one small enough for a CPU.
ARCHITECTURES: Mapping[str, Mapping[str, int | str]] = {
    "bart_large": _sizes(12, 1024, 16, 1024),
    "bart_base": _sizes(6, 768, 12, 1024),
    "small": _sizes(2, 64, 2, 256),
}


@dataclass(frozen=True)
class PreparedBart:
    """A checkpoint that fairseq can start from.

    Args:
        path: The folder. It holds ``model.pt`` and, written last, ``bart.json``.
        facts: Content of ``bart.json``: ``kind`` and ``source`` say where the
            weights are from, ``sizes`` has an entry per name of ``SIZES``,
            ``rows`` is the number of rows of the embedding, ``dict_sha256`` the
            hash of its dictionary, ``bytes`` and ``sha256`` are those of ``model.pt``.
    """

    path: Path
    facts: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> PreparedBart:
        """Open a finished folder.

        Args:
            path: The folder.

        Returns:
            It.

        Raises:
            UserError: If there is no such folder, if it is something else, or
                if its checkpoint is not the one that was written.
        """
        if not path.exists():
            raise UserError(f"{path}: no such file; make a checkpoint with: {_COMMAND}")
        try:
            facts = read_json(path / BART_MARKER)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path} was not made by deltasam prepare bart (it has no {BART_MARKER}). Check "
                "and convert a fairseq checkpoint or a Hugging Face folder with: "
                f"{_COMMAND.replace('CHECKPOINT', str(path))}"
            ) from None
        bart = cls(path, facts)
        size = bart.checkpoint.stat().st_size if bart.checkpoint.is_file() else None
        if size != facts["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {facts['bytes']}"
            raise UserError(f"{bart.checkpoint} {found}; make {path} anew with: {_COMMAND}")
        return bart

    @property
    def checkpoint(self) -> Path:
        """The file for ``--restore-file``."""
        return self.path / "model.pt"

    def require_sizes(self, wanted: Mapping[str, object]) -> None:
        """Check that the checkpoint fits a model.

        Args:
            wanted: Sizes of the model, by name.

        Raises:
            UserError: If one differs.
        """
        sizes = self.facts["sizes"]
        different = [
            f"{name} is {sizes[name]}, the model's is {value}"
            for name, value in wanted.items()
            if str(sizes[name]) != str(value)
        ]
        if different:
            raise UserError(
                f"{self.checkpoint} does not fit this recipe: {'; '.join(different)}. Give the "
                "recipe's own size of BART, or the sizes of yours as flags, as in: "
                f"--{different[0].split()[0]} {sizes[different[0].split()[0]]}"
            )

    def require_dictionary(self, sha256: str, words: int) -> None:
        """Check that the rows of the embedding are the words of a dictionary.

        Args:
            sha256: Hash of the dictionary that the data was binarized with.
            words: Its number of lines.

        Raises:
            UserError: If they are another dictionary's.
        """
        if self.facts["dict_sha256"] != sha256:
            raise UserError(
                f"{self.path} was prepared for another dictionary ({self.facts['rows']} rows, "
                f"sha256 {self.facts['dict_sha256'][:12]}…) than the data ({words} words, sha256 "
                f"{sha256[:12]}…); prepare both with the same --dict"
            )


_COMMAND = "deltasam prepare bart CHECKPOINT --gpt2 DIR --out DIR"


def require_rows(rows: int, words: int, what: str) -> None:
    """Check an embedding's number of rows.

    Args:
        rows: Rows of the embedding.
        words: Lines of the dictionary.
        what: The checkpoint, for the message.

    Raises:
        UserError: Unless there is a row per special symbol and word, with or
            without one more for ``<mask>``.
    """
    least = words + SPECIAL_SYMBOLS
    if rows not in (least, least + 1):
        raise UserError(
            f"{what} embeds {rows} symbols, but the dictionary has {words} words, which makes "
            f"{least} with the special symbols, or {least + 1} with <mask>; give the dictionary "
            "that the checkpoint was trained with"
        )
