"""How text becomes tokens: what a data folder needs to know of it, and sentencepiece's way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from deltasam_fairseq.data.aligned import Aligned, Splits
from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET, PreparedData
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.data.sentencepiece_model import encode, train_model
from deltasam_fairseq.files import write_lines
from deltasam_fairseq.settings import setting


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

    References for scoring are not cut.
    """

    vocab_size: int = setting("pieces of the joint sentencepiece model (%(default)s)", 8000)
    max_source_tokens: int = setting("sources are cut here, in pieces (%(default)s)", 512)
    max_target_tokens: int = setting("targets are cut here, in pieces (%(default)s)", 128)

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
            encoded = encode(lines, data.model, max_tokens=limits[side], workers=workers)
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
        size = train_model(texts, data.model, vocab_size=self.vocab_size)
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
