"""Embedding sentences with a run's model, and scoring it on the STS sets."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from deltasam_fairseq import __version__
from deltasam_fairseq.data.mirror import PreparedMirror
from deltasam_fairseq.data.process import Say, require_fairseq, run_program
from deltasam_fairseq.data.sts import DEVELOPMENT, PAIRS, PreparedSts, StsFile
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.sts import sts_scores
from deltasam_fairseq.files import file_sha256, write_json, write_lines
from deltasam_fairseq.recipes.command import embed_command
from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions
from deltasam_fairseq.recipes.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np

#: Where ``deltasam prepare sts`` puts the sets if it is not told.
STS_FOLDER = Path("data", "sts")
AVERAGE = "average"


def embed_lines(
    data: PreparedMirror, checkpoint: Path, lines: Sequence[str], folder: Path, *, cpu: bool
) -> np.ndarray[Any, Any]:
    """Embed sentences in a process of its own.

    Args:
        data: What the model was trained on: it has the vocabulary.
        checkpoint: The model.
        lines: The sentences.
        folder: For ``vectors.npy`` and the log.
        cpu: Whether to leave a GPU alone.

    Returns:
        Shape ``(sentences, D)``, float32.

    Raises:
        UserError: If there is no checkpoint, the process fails, or a vector is not finite.
    """
    import numpy as np  # noqa: PLC0415 - recipes are listed without it

    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file; train first")
    require_fairseq()
    folder.mkdir(parents=True, exist_ok=True)
    text, out = folder / "sentences.txt", folder / "vectors.npy"
    write_lines(text, lines)
    command = embed_command(data.binary, checkpoint, text, out, cpu=cpu)
    run_program("embedding", command, folder / "embed.log")
    vectors = np.load(out)
    if len(vectors) != len(lines):
        raise UserError(f"{out}: {len(vectors)} vectors for {len(lines)} sentences")
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(1)).argmax())
        raise UserError(
            f"{checkpoint}: the embedding of {lines[bad]!r} is not finite; the training diverged, "
            "a smaller --lr or --sam-rho may help"
        )
    return np.asarray(vectors)


def evaluate_sts(
    data: PreparedMirror, checkpoint: Path, run: RunFolder, options: EvaluationOptions
) -> Evaluation:
    """Score a model on the seven sets, or on STS-B's development set with ``--split valid``."""
    split = options.split or "test"
    if split not in {"test", "valid"}:
        raise UserError(f"--split {split} is of GLUE's tasks; the STS sets have test and valid")
    found = sts_record(
        data, checkpoint, run, cpu=options.cpu, folder=options.sts or STS_FOLDER, split=split
    )
    lines = [f"{name:9} {value:7.2f}" for name, value in found["metrics"].items()]
    return Evaluation(split, (*lines, f"\nSpearman, n = {found['n']}, {found['signature']}"))


def sts_record(
    data: PreparedMirror,
    checkpoint: Path,
    run: RunFolder,
    *,
    cpu: bool,
    folder: Path = STS_FOLDER,
    split: str = "test",
    say: Say = print,
) -> dict[str, Any]:
    """Embed all pairs of a split and correlate their cosines with the scores.

    The score of each set, in percent, is one Spearman correlation over all its files' pairs, and
    with ``test`` there is the average of the seven.

    Args:
        data: What the model was trained on.
        checkpoint: The model.
        run: Where to keep vectors and scores.
        cpu: Whether to leave a GPU alone.
        folder: Of ``deltasam prepare sts``.
        split: ``test`` or ``valid``.
        say: Told what was written.

    Returns:
        ``metrics``, ``n``, ``signature``, ``checkpoint_sha256``.
    """
    pairs = PreparedSts.load(folder)
    wanted = list(PAIRS) if split == "test" else [DEVELOPMENT]
    sets = {name: files for name, files in pairs.sets().items() if name in wanted}
    everyone = [side for files in sets.values() for file in files for side in _sides(file)]
    lines = list(dict.fromkeys(line for side in everyone for line in side))
    out = run.predictions(split)
    vectors = embed_lines(data, checkpoint, lines, out, cpu=cpu)
    scores = scored_sets(sets, lines, vectors)
    metrics = {name: report["spearman"] for name, report in scores.items()}
    if split == "test":
        metrics = {AVERAGE: fmean(metrics.values()), **metrics}
    found = {
        "metrics": metrics,
        "n": sum(report["n"] for report in scores.values()),
        "signature": f"sts|metric:spearman|setting:all|pairs:{pairs.facts['sha256'][:8]}"
        f"|version:{__version__}",
        "checkpoint_sha256": file_sha256(checkpoint),
    }
    write_json(out / "scores.json", {**found, "sets": scores, "data_sha256": data.sha256})
    say(f"{out / 'scores.json'}: {next(iter(metrics))} {next(iter(metrics.values())):.2f}")
    return found


def scored_sets(
    sets: Mapping[str, Sequence[StsFile]], lines: Sequence[str], vectors: np.ndarray[Any, Any]
) -> dict[str, dict[str, Any]]:
    """Correlate cosines of embeddings with the scores of pairs.

    Args:
        sets: The pairs.
        lines: Every sentence of them, each once.
        vectors: Their embeddings.

    Returns:
        By set what :meth:`~deltasam_fairseq.evaluation.sts.StsReport.as_json` says.

    Raises:
        UserError: If an embedding is zero, or all of them are the same.
    """
    import numpy as np  # noqa: PLC0415

    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not norms.all():
        raise UserError(f"the embedding of {lines[int((norms == 0).argmax())]!r} is zero")
    unit = vectors / norms
    row = {line: number for number, line in enumerate(lines)}
    found = {}
    for name, files in sets.items():
        similar = {}
        for file in files:
            first, second = ([row[line] for line in side] for side in _sides(file))
            cosines = (unit[first] * unit[second]).sum(1)
            similar[file.name] = ([repr(float(value)) for value in cosines], file.gold)
        try:
            found[name] = sts_scores(similar).as_json()
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    return found


def embed_file(
    run: RunFolder,
    data: PreparedMirror,
    checkpoint: Path,
    lines: Sequence[str],
    out: Path,
    *,
    cpu: bool,
) -> tuple[int, ...]:
    """Embed anyone's sentences with a run's model.

    Args:
        run: The run.
        data: What it was trained on.
        checkpoint: Its model.
        lines: The sentences.
        out: A file of NumPy.
        cpu: Whether to leave a GPU alone.

    Returns:
        The shape of what it holds.
    """
    folder = run.predictions("file")
    shape: tuple[int, ...] = embed_lines(data, checkpoint, lines, folder, cpu=cpu).shape
    shutil.move(folder / "vectors.npy", out)
    return shape


def _sides(file: StsFile) -> tuple[list[str], list[str]]:
    """Return the sentences of a file as a file of lines holds them."""
    first, second = (
        [" ".join(line.split()) for line in side] for side in (file.first, file.second)
    )
    return first, second
