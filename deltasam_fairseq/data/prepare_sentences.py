"""From the tables of a task on sentences to a finished data folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltasam_fairseq import __version__
from deltasam_fairseq.data.binarize import binarize_column
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.files import file_sha256
from deltasam_fairseq.data.pipeline import is_made, work_folder
from deltasam_fairseq.data.prepared import MARKER, SENTENCES
from deltasam_fairseq.data.prepared_sentences import PreparedSentences
from deltasam_fairseq.data.process import require_fairseq
from deltasam_fairseq.data.sentence_task import Rows, SentenceTask, describe_malformed, read_rows
from deltasam_fairseq.data.tokens import write_lines
from deltasam_fairseq.data.vocabulary import Vocabulary, cut, vocabulary_of
from deltasam_fairseq.errors import UserError

Say = Callable[[str], None]
_REQUIRED = ("train", "valid")


@dataclass(frozen=True)
class SentenceOptions:
    """How to prepare a task.

    Args:
        max_tokens: Longest input with its special tokens; longer ones are cut.
        skip_malformed: Whether malformed rows of labelled files are left out.
        strict: Whether unknown numbers of rows are an error.
        workers: Number of processes.
    """

    max_tokens: int
    skip_malformed: bool = False
    strict: bool = False
    workers: int = 1


def prepare_sentences(
    out: Path,
    task: SentenceTask,
    folder: Path,
    encoder: PreparedEncoder,
    options: SentenceOptions,
    *,
    force: bool = False,
    say: Say = print,
) -> PreparedSentences:
    """Make a data folder for fairseq's ``sentence_prediction``, or find that it is there.

    Args:
        out: The folder to make; ``prepared.json`` is written last.
        task: What the tables hold.
        folder: The task's folder, or one that holds it.
        encoder: Whose vocabulary to use.
        options: How to prepare it.
        force: Whether to make it in any case, in the place of one that is there.
        say: Told what happens, line by line.

    Returns:
        The finished folder.
    """
    files = dict(_files(task, folder))
    wanted = {
        "kind": SENTENCES,
        "task": task.name,
        "inputs": {name: file_sha256(path) for name, path in files.items()},
        "settings": {
            "dict.txt": encoder.facts["dict_sha256"],
            "family": encoder.facts["family"],
            **encoder.cutting,
            "max_tokens": options.max_tokens,
            "skip_malformed": options.skip_malformed,
        },
    }
    if is_made(out, wanted, force=force):
        say(f"{out}: finished before from the same inputs; nothing to do")
        return PreparedSentences.load(out)
    require_fairseq()
    with work_folder(out) as work:
        data = PreparedSentences(work, dict(wanted))
        splits = _read(files, task, options, say)
        _write(data, splits, vocabulary_of(encoder), options, say)
        for name, rows in splits.items():
            _write_labels(data, name, rows, task)
        say("binarizing with fairseq-preprocess …")
        _binarize(data, splits, task, encoder.dictionary, options.workers)
        data.facts["rows"] = {name: len(rows) for name, rows in splits.items()}
        data.facts["malformed"] = {n: len(rows.malformed) for n, rows in splits.items()}
        data.facts["sha256"] = _digest(data, encoder)
        data.facts["versions"] = {"deltasam_fairseq": __version__}
        (work / MARKER).write_text(json.dumps(data.facts, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    counts = ", ".join(f"{number} {name}" for name, number in data.facts["rows"].items())
    say(f"{out}: finished; rows: {counts}")
    return PreparedSentences.load(out)


def _files(task: SentenceTask, folder: Path) -> Iterator[tuple[str, Path]]:
    """Find the files; those of unlabelled splits may be missing."""
    place = folder / task.folder if (folder / task.folder).is_dir() else folder
    for split in task.splits:
        path = place / split.file
        if path.is_file():
            yield split.name, path
        elif split.name in _REQUIRED:
            raise UserError(
                f"{path}: no such file; the folder must hold {task.folder} with "
                f"{', '.join(s.file for s in task.splits)} as the official archive has them"
            )


def _read(
    files: Mapping[str, Path], task: SentenceTask, options: SentenceOptions, say: Say
) -> dict[str, Rows]:
    splits = {}
    for name, path in files.items():
        split = task.split(name)
        rows = read_rows(path, task, split, skip=options.skip_malformed)
        if rows.malformed:
            say(f"{path}: left out {describe_malformed(rows)}")
        if split.counts and len(rows) not in split.counts:
            known = " or ".join(f"{count:,}" for count in split.counts)
            text = f"{path}: {len(rows):,} rows, the official {task.name} has {known}"
            if options.strict:
                raise UserError(f"{text}; scores on other rows do not compare with published ones")
            say(f"note: {text}")
        splits[name] = rows
    return splits


def _write(
    data: PreparedSentences,
    splits: Mapping[str, Rows],
    vocabulary: Vocabulary,
    options: SentenceOptions,
    say: Say,
) -> None:
    for name, rows in splits.items():
        for number, lines in enumerate(rows.texts):
            write_lines(data.raw(name, f"input{number}"), lines)
        if rows.labels is not None:
            write_lines(data.raw(name, "label"), rows.labels)
        tokens = [
            vocabulary.encode(lines, data.path, workers=options.workers) for lines in rows.texts
        ]
        limit = options.max_tokens - vocabulary.specials(len(tokens))
        pairs = [cut(sides, limit) for sides in zip(*tokens, strict=True)]
        shorter = sum(
            any(len(a) < len(b) for a, b in zip(kept, whole, strict=True))
            for kept, whole in zip(pairs, zip(*tokens, strict=True), strict=True)
        )
        if shorter:
            say(f"{name}: {shorter} of {len(rows)} inputs cut to {options.max_tokens} tokens")
        for number in range(len(tokens)):
            lines = [" ".join(sides[number]) for sides in pairs]
            write_lines(data.pieces(name, f"input{number}"), lines)


def _write_labels(data: PreparedSentences, name: str, rows: Rows, task: SentenceTask) -> None:
    if rows.labels is None:
        return
    if task.is_regression:
        lines = [repr(float(label) / task.label_scale) for label in rows.labels]
        folder = data.binary / "label"
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / f"{name}.label", lines)
    else:
        write_lines(data.pieces(name, "label"), rows.labels)


def _binarize(
    data: PreparedSentences,
    splits: Mapping[str, Rows],
    task: SentenceTask,
    dictionary: Path,
    workers: int,
) -> None:
    log = data.path / "preprocess.log"
    columns = [f"input{number}" for number in range(len(splits["train"].texts))]
    for column in columns:
        files = {name: data.pieces(name, column) for name in splits}
        binarize_column(
            files, data.binary / column, dictionary=dictionary, workers=workers, log=log
        )
    if not task.is_regression:
        # In the order of the classes, so that ids are those of the task.
        labels = data.path / "labels.txt"
        write_lines(labels, [f"{label} 1" for label in task.classes])
        files = {
            name: data.pieces(name, "label")
            for name, rows in splits.items()
            if rows.labels is not None
        }
        binarize_column(files, data.binary / "label", dictionary=labels, workers=1, log=log)


def _digest(data: PreparedSentences, encoder: PreparedEncoder) -> str:
    total = hashlib.sha256(encoder.facts["dict_sha256"].encode())
    for folder in ("pieces", "raw"):
        for path in sorted((data.path / folder).iterdir()):
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()
