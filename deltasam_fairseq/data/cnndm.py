"""CNN/DailyMail as the origin of a data folder: stories or aligned files, cleaned and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import Aligned, hold_out, read_lines
from deltasam_fairseq.data.pipeline import Origin
from deltasam_fairseq.data.prepared import SPLITS
from deltasam_fairseq.data.stories import StoryFiles, read_stories, story_inputs, strip_byline
from deltasam_fairseq.data.text_origin import TextFiles, default_hold_out, text_inputs
from deltasam_fairseq.errors import UserError

#: Pairs with text on both sides, as in the published results.
COUNTS = {"train": 287_113, "valid": 13_368, "test": 11_490}


@dataclass(frozen=True)
class CnndmOptions:
    """How the text is cleaned and counted.

    Args:
        keep_bylines: Whether ``(CNN) --`` stays at the beginning of articles.
        strict: Whether another number of pairs than the published one is an error.
        held_out: For aligned files without validation or test files.
        workers: Number of threads that read stories.
    """

    keep_bylines: bool = False
    strict: bool = False
    held_out: int | None = None
    workers: int = 1


def cnndm_origin(
    files: StoryFiles | TextFiles,
    options: CnndmOptions,
    *,
    say: Callable[[str], None] = print,
) -> Origin:
    """Describe a CNN/DailyMail corpus.

    Args:
        files: Stories, or aligned files.
        options: How to clean and count.
        say: Told what is left out and how the counts differ.

    Returns:
        What :func:`~deltasam_fairseq.data.pipeline.prepare` takes.
    """
    inputs: dict[str, Any] = {"keep_bylines": options.keep_bylines}
    if isinstance(files, StoryFiles):
        inputs |= story_inputs(files)
    else:
        inputs |= text_inputs(files) | {"hold_out": options.held_out}

    def load(folder: Path) -> Mapping[str, Aligned]:
        if isinstance(files, StoryFiles):
            raw = read_stories(files, workers=options.workers, say=say)
        else:
            raw = {name: _read_pair(*pair) for name, pair in files.given().items()}
        splits = {
            name: clean(pair, name, keep_bylines=options.keep_bylines, say=say)
            for name, pair in raw.items()
        }
        size = options.held_out or default_hold_out(len(splits["train"]))
        for name in ("test", "valid"):
            if name not in splits:
                splits["train"], splits[name] = hold_out(splits["train"], size)
        check_counts({name: len(splits[name]) for name in SPLITS}, strict=options.strict, say=say)
        return splits

    return Origin("cnndm", inputs, load)


def clean(
    pair: Aligned, split: str, *, keep_bylines: bool = False, say: Callable[[str], None] = print
) -> Aligned:
    """Strip bylines and leave pairs out that lack article or summary.

    Args:
        pair: As read.
        split: Its name, for what is said.
        keep_bylines: Whether bylines stay.
        say: Told the numbers.

    Returns:
        What is left.

    Raises:
        UserError: If nothing is left.
    """
    sources = pair.sources if keep_bylines else [strip_byline(text) for text in pair.sources]
    stripped = sum(new != old for new, old in zip(sources, pair.sources, strict=True))
    if stripped:
        say(f"{split}: {stripped} bylines such as '(CNN) --' stripped")
    kept = [(s, t) for s, t in zip(sources, pair.targets, strict=True) if s and t]
    if dropped := len(sources) - len(kept):
        say(f"{split}: {dropped} of {len(sources)} pairs left out: article or summary is empty")
    if not kept:
        raise UserError(f"{split}: every pair has an empty article or an empty summary")
    return Aligned([s for s, _ in kept], [t for _, t in kept])


def check_counts(
    counts: Mapping[str, int], *, strict: bool, say: Callable[[str], None] = print
) -> None:
    """Compare the numbers of pairs with the published ones.

    Args:
        counts: By split.
        strict: Whether a difference is an error.
        say: Told each difference otherwise.

    Raises:
        UserError: If ``strict`` and a number differs.
    """
    different = [
        f"{name}: {counts[name]:,} pairs, CNN/DailyMail has {COUNTS[name]:,} "
        f"({counts[name] - COUNTS[name]:+,})"
        for name in SPLITS
        if counts[name] != COUNTS[name]
    ]
    if different and strict:
        raise UserError(
            f"{'; '.join(different)}. Scores on other pairs do not compare with published ones; "
            "leave --strict-counts out to go on nevertheless"
        )
    for line in different:
        say(f"note: {line}")
    if not different:
        say("the numbers of pairs are those of CNN/DailyMail: 287,113, 13,368 and 11,490")


def _read_pair(source: Path, target: Path) -> Aligned:
    pair = Aligned(read_lines(source), read_lines(target))
    if len(pair.sources) != len(pair.targets):
        raise UserError(
            f"{source} has {len(pair.sources)} lines and {target} has {len(pair.targets)}; line n "
            "of one must belong to line n of the other. A program that takes the carriage returns "
            "inside articles for ends of lines makes more lines than there are articles"
        )
    return pair
