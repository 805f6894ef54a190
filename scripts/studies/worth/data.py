"""Draws of a task's training sentences, some with another label, as tables that are prepared."""

from __future__ import annotations

import random
from operator import itemgetter
from pathlib import Path

from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.sentence_task import SentenceTask, SplitFile, read_rows
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_utf8, write_lines
from scripts.studies.worth.plan import Condition


def write_tables(condition: Condition, seed: int, glue: Path, out: Path) -> None:
    """Write train and validation tables of one draw, in the task's own layout.

    The draw depends on the seed alone. The validation sentences are all there, with the labels
    that they have, sorted by length: batches of them have little padding.

    Args:
        condition: What to draw.
        seed: Of the draw.
        glue: Folder of the task's own folder.
        out: Where to.

    Raises:
        UserError: If there are fewer sentences of these lengths, or labels that cannot be flipped.
    """
    task = GLUE[condition.recipe.removeprefix("glue/")]
    if condition.flipped and len(task.classes) != 2:
        raise UserError(f"{task.name} has no two classes, so that no label has one opposite")
    train, valid = task.split("train"), task.split("valid")
    head, rows = _rows(glue, task, train)
    least, most = condition.words
    fitting = [line for words, line in rows if least <= words <= most]
    if len(fitting) < condition.sentences:
        raise UserError(
            f"{task.name} has {len(fitting)} training sentences of {least} to {most} words, "
            f"{condition.sentences} are to be drawn"
        )
    draw = random.Random(seed)
    drawn = draw.sample(fitting, condition.sentences)
    label = train.layout.label
    column = label if isinstance(label, int) else head[0].split("\t").index(str(label))
    for index in draw.sample(range(len(drawn)), round(condition.flipped * len(drawn))):
        cells = drawn[index].split("\t")
        cells[column] = next(label for label in task.classes if label != cells[column])
        drawn[index] = "\t".join(cells)
    out.mkdir(parents=True, exist_ok=True)
    write_lines(out / train.file, [*head, *drawn])
    head, rows = _rows(glue, task, valid)
    write_lines(out / valid.file, [*head, *(line for _, line in sorted(rows, key=itemgetter(0)))])


def _rows(
    glue: Path, task: SentenceTask, split: SplitFile
) -> tuple[list[str], list[tuple[int, str]]]:
    """Return the header, if there is one, and every row with its number of words."""
    path = glue / task.folder / split.file
    texts = read_rows(path, task, split).texts
    lines = read_utf8(path).removesuffix("\n").split("\n")
    first = 1 if split.layout.header else 0
    counts = (sum(len(side.split()) for side in row) for row in zip(*texts, strict=True))
    return lines[:first], list(zip(counts, lines[first:], strict=True))
