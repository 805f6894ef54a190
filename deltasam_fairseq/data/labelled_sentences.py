"""Labelled sentences: from the tables of a task to a finished data folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltasam_fairseq.data.binarize import binarize_column
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.pipeline import make_corpus
from deltasam_fairseq.data.prepared import PreparedCorpus
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.data.sentence_task import Rows, SentenceTask, describe_malformed, read_rows
from deltasam_fairseq.data.vocabulary import Vocabulary, cut, vocabulary_of
from deltasam_fairseq.errors import UserError, at_least
from deltasam_fairseq.files import file_sha256, write_lines
from deltasam_fairseq.settings import setting

_KIND = "sentences"
_REQUIRED = ("train", "valid")


class PreparedSentences(PreparedCorpus):
    """Labelled sentences, as fairseq's ``sentence_prediction`` reads them.

    The columns are ``input0``, ``input1`` and ``label``. ``facts`` has ``task``, and ``rows`` and
    ``malformed`` by split.
    """

    @property
    def holds(self) -> str:
        """The name of their task."""
        return str(self.facts["task"])

    def require_split(self, split: str) -> None:
        """Check that a split is there."""
        if split not in self.facts["rows"]:
            raise UserError(
                f"{self.path} has no split {split!r}; it has {', '.join(self.facts['rows'])}"
            )

    def labels(self, split: str) -> list[str]:
        """Read the labels of a split, as its authors' file has them; none are an error."""
        self.require_split(split)
        if not self.raw(split, "label").is_file():
            raise UserError(f"{self.path}: {split} has no labels, only sentences")
        return self.texts(split, "label")

    @classmethod
    def _unfinished(cls, path: Path) -> str:
        return (
            f"{path} is not a finished data folder (it has no {cls.MARKER}); make one with: "
            f"deltasam prepare RECIPE --glue DIR --model NAME --out {path}"
        )

    def _require_whole(self) -> None:
        if self.facts.get("kind") != _KIND:
            raise UserError(
                f"{self.path} was made for {self.facts.get('kind')}, not for a task on sentences; "
                "give the folder that deltasam prepare made for this recipe"
            )


@dataclass(frozen=True)
class SentenceOptions:
    """How the tables of a task become data; ``max_tokens`` counts special tokens as well."""

    max_tokens: int | None = setting("longest input; default: the model's", None)
    skip_malformed: bool = setting(
        "leave malformed rows of labelled files out, and say which", False
    )
    strict_counts: bool = setting("stop if the numbers of rows are not known", False)
    workers: int = setting(
        "processes; the result does not depend on it (%(default)s)", os.cpu_count() or 1
    )
    force: bool = setting("make it anew in any case", False)


def prepare_sentences(
    out: Path,
    task: SentenceTask,
    folder: Path,
    encoder: PreparedEncoder,
    options: SentenceOptions,
    *,
    say: Say = print,
) -> PreparedSentences:
    """Make a folder of labelled sentences, or find that it is there; see :func:`make_corpus`.

    Args:
        out: The folder to make.
        task: What the tables hold.
        folder: The task's folder, or one that holds it.
        encoder: Whose vocabulary to use.
        options: How to prepare it; ``max_tokens`` is given.
        say: Told what happens.

    Returns:
        The finished folder.
    """
    files, vocabulary = dict(_files(task, folder)), vocabulary_of(encoder)
    texts = len(task.split("train").layout.texts)
    at_least("--max-tokens", options.max_tokens or 0, vocabulary.specials(texts) + texts)

    def build(data: PreparedSentences) -> str:
        splits = _read(files, task, options, say)
        _write(data, splits, vocabulary, options, say)
        for name, rows in splits.items():
            _write_labels(data, name, rows, task)
        say("binarizing with fairseq-preprocess …")
        _binarize(data, splits, task, encoder.dictionary, options.workers)
        data.facts["rows"] = {name: len(rows) for name, rows in splits.items()}
        data.facts["malformed"] = {n: len(rows.malformed) for n, rows in splits.items()}
        data.facts["sha256"] = _digest(data, encoder)
        return f"rows: {', '.join(f'{len(rows)} {name}' for name, rows in splits.items())}"

    wanted = {
        "kind": _KIND,
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
    return make_corpus(out, PreparedSentences, wanted, build, force=options.force, say=say)


def write_submission(
    folder: Path, task: SentenceTask, split: str, predictions: Sequence[str]
) -> Path:
    """Write predictions, in the order of the file, as GLUE's server takes them.

    Returns:
        The file, named as the server wants it.

    Raises:
        UserError: If the split has no such file, or another number of rows.
    """
    found = task.split(split)
    if not found.submission:
        raise UserError(f"{task.name} has no submission file for {split!r}")
    if found.counts and len(predictions) not in found.counts:
        raise UserError(
            f"{len(predictions)} predictions for {task.name}, whose {split} set has "
            f"{found.counts[0]}; the server refuses the file"
        )
    path = folder / found.submission
    rows = [f"{index}\t{prediction}" for index, prediction in enumerate(predictions)]
    write_lines(path, ["index\tprediction", *rows])
    return path


def _files(task: SentenceTask, folder: Path) -> Iterator[tuple[str, Path]]:
    """Find the files; those of unlabelled splits may be missing."""
    place = folder / task.folder if (folder / task.folder).is_dir() else folder
    missing: dict[str, str] = {}
    for split in task.splits:
        path = place / split.file
        if path.is_file():
            first = split.name.rstrip("0123456789")
            if first in missing:  # fairseq-preprocess numbers them anew
                raise UserError(
                    f"{place} has {split.file} without {missing[first]}; add it, or take the "
                    "former away"
                )
            yield split.name, path
        elif split.name in _REQUIRED:
            raise UserError(
                f"{path}: no such file; the folder must hold {task.folder} with "
                f"{', '.join(s.file for s in task.splits)} as the official archive has them"
            )
        else:
            missing[split.name] = split.file


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
            if options.strict_counts:
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
        limit = (options.max_tokens or 0) - vocabulary.specials(len(tokens))
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
