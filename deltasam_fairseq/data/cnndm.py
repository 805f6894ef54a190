"""CNN/DailyMail as the origin of a data folder: stories or aligned files, cleaned and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.aligned import Aligned, Splits, read_lines
from deltasam_fairseq.data.prepared import SPLITS
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.data.stories import StoryFiles, read_stories, strip_byline
from deltasam_fairseq.data.text_pairs import Origin, TextFiles, with_held_out
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.settings import setting

#: Pairs with text on both sides, as in the published results.
COUNTS = {"train": 287_113, "valid": 13_368, "test": 11_490}


@dataclass(frozen=True)
class CnndmOptions:
    """How the text is cleaned and counted; ``held_out`` is for files without all splits."""

    keep_bylines: bool = setting("leave '(CNN) --' where articles begin with it", False)
    strict_counts: bool = setting("stop if there are not 287,113, 13,368 and 11,490 pairs", False)
    held_out: int | None = None
    workers: int = 1


def cnndm_origin(
    files: StoryFiles | TextFiles, options: CnndmOptions, *, say: Say = print
) -> Origin:
    """Describe a CNN/DailyMail corpus, of stories or of aligned files."""
    inputs: dict[str, Any] = {"keep_bylines": options.keep_bylines, **files.hashes()}
    if not isinstance(files, StoryFiles):
        inputs["hold_out"] = options.held_out

    def load(folder: Path) -> Splits:
        if isinstance(files, StoryFiles):
            raw = read_stories(files, workers=options.workers, say=say)
        else:
            raw = {name: _read_pair(*pair) for name, pair in files.given().items()}
        splits = with_held_out(
            {
                name: clean(pair, name, keep_bylines=options.keep_bylines, say=say)
                for name, pair in raw.items()
            },
            options.held_out,
        )
        counts = {name: len(splits[name]) for name in SPLITS}
        check_counts(counts, strict=options.strict_counts, say=say)
        return splits

    return Origin("cnndm", inputs, load)


def clean(pair: Aligned, split: str, *, keep_bylines: bool = False, say: Say = print) -> Aligned:
    """Strip bylines and leave pairs out that lack article or summary; some must be left."""
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


def check_counts(counts: Mapping[str, int], *, strict: bool, say: Say = print) -> None:
    """Compare the numbers of pairs with the published ones; a difference is said, or an error."""
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
