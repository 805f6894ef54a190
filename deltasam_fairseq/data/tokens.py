"""How text becomes tokens: what a data folder needs to know of it, and sentencepiece's way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from deltasam_fairseq.data import pieces
from deltasam_fairseq.data.aligned import Aligned
from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET, PreparedData

Splits = Mapping[str, Aligned]
Say = Callable[[str], None]


class Tokens(Protocol):
    """A way to cut text into tokens."""

    def settings(self) -> dict[str, Any]:
        """Return what the tokens depend on, in JSON's types."""
        ...

    def write(
        self, data: PreparedData, splits: Splits, *, workers: int, say: Say
    ) -> dict[str, Any]:
        """Write ``data.pieces(…)`` of every split and side, and the files of the model.

        Args:
            data: The growing folder; ``data.raw(…)`` is there.
            splits: The same text.
            workers: Number of processes or threads.
            say: Told what happens.

        Returns:
            Facts for ``prepared.json``, ``pieces`` (their number) among them.
        """
        ...

    def dictionary(self, data: PreparedData) -> Path | None:
        """Return the dictionary to binarize with, or none to build one from the pieces."""
        ...

    def model_files(self, data: PreparedData) -> tuple[Path, ...]:
        """Return the files that the hash of the folder covers beside the text."""
        ...


@dataclass(frozen=True)
class TokenSettings:
    """Pieces of a sentencepiece model that is trained on the training text.

    Args:
        vocab_size: Pieces of the joint sentencepiece model.
        max_source_tokens: Sources are cut here, in pieces.
        max_target_tokens: Targets are cut here, in pieces; references for scoring are not.
    """

    vocab_size: int = 8000
    max_source_tokens: int = 512
    max_target_tokens: int = 128

    def settings(self) -> dict[str, Any]:
        """Return the three numbers by name."""
        return asdict(self)

    def write(
        self, data: PreparedData, splits: Splits, *, workers: int, say: Say
    ) -> dict[str, Any]:
        """Train the model and write the pieces; see :meth:`Tokens.write`."""
        size = self._train(data, splits["train"], say)
        limits = {SOURCE: self.max_source_tokens, TARGET: self.max_target_tokens}
        for name, side, lines in sides(splits):
            encoded = pieces.encode(lines, data.model, max_tokens=limits[side], workers=workers)
            write_lines(data.pieces(name, side), encoded)
        return {"pieces": size}

    def dictionary(self, data: PreparedData) -> Path | None:
        """Return none: fairseq-preprocess builds it."""
        return None

    def model_files(self, data: PreparedData) -> tuple[Path, ...]:
        """Return the sentencepiece model."""
        return (data.model,)

    def _train(self, data: PreparedData, train: Aligned, say: Say) -> int:
        # A word is at least one piece: what lies behind so many words is cut off anyway.
        sources = [" ".join(text.split()[: self.max_source_tokens]) for text in train.sources]
        say(f"training sentencepiece on {len(train)} training pairs …")
        began = time.monotonic()
        texts = [*sources, *train.targets]
        size = pieces.train_model(texts, data.model, vocab_size=self.vocab_size)
        wish = ""
        if size != self.vocab_size:
            wish = f" (of {self.vocab_size}: the text gives no more)"
        say(f"sentencepiece: {size} pieces{wish}, {time.monotonic() - began:.0f} s")
        return size


def sides(splits: Splits) -> Iterator[tuple[str, str, list[str]]]:
    """Yield split, side and lines of every file of a corpus, in a fixed order."""
    for name in SPLITS:
        yield name, SOURCE, splits[name].sources
        yield name, TARGET, splits[name].targets


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file.

    Args:
        path: The file; its folder is made.
        lines: Without their newlines.
    """
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
