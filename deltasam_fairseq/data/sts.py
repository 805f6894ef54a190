"""The seven sets of sentence pairs of Table 2: STS12 to STS16, STS-B and SICK-R.

They are read as their organisers released them, raw and cased. SentEval's copies are
lower-cased and cut into words, which is not what a cased model was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deltasam_fairseq.data.pipeline import finished_folder
from deltasam_fairseq.data.prepared import PreparedFolder
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import file_sha256, read_json, read_utf8, write_json

#: Scored pairs that papers evaluate on, by set, in the order of Table 2's columns. STS13 is
#: without SMT, whose sentences need a licence of the LDC.
PAIRS = {
    "STS12": 3108,
    "STS13": 1500,
    "STS14": 3750,
    "STS15": 3000,
    "STS16": 1186,
    "STS-B": 1379,
    "SICK-R": 4927,
}
#: STS-B's development set, on which Mirror-BERT's hyperparameters are chosen.
DEVELOPMENT = "STS-B dev"

_PAIRS_FILE = "pairs.json"
_YEAR = re.compile(r"STS(\d\d)")


class PreparedSts(PreparedFolder):
    """All pairs of the seven sets and of STS-B's development set, in ``pairs.json``.

    ``facts`` has the number of scored ``pairs`` by set, ``inputs`` and ``sha256`` of the pairs.
    """

    MARKER = "sts.json"

    def sets(self) -> dict[str, list[StsFile]]:
        """Read the pairs."""
        content = read_json(self.path / _PAIRS_FILE)
        return {name: [StsFile(**file) for file in files] for name, files in content.items()}

    @classmethod
    def _unfinished(cls, path: Path) -> str:
        return (
            f"{path} has no STS sets (no {cls.MARKER}); make it with: deltasam prepare sts --sts "
            f"DIR --out {path}"
        )

    def _require_whole(self) -> None:
        if file_sha256(self.path / _PAIRS_FILE) != self.facts["sha256"]:
            raise UserError(
                f"{self.path / _PAIRS_FILE} has changed; make {self.path} anew with: deltasam "
                f"prepare sts --sts DIR --out {self.path} --force"
            )


def prepare_sts(
    out: Path, folders: Sequence[Path], *, force: bool = False, say: Say = print
) -> PreparedSts:
    """Read the sets as released, check their counts and keep the pairs in one place.

    Args:
        out: The folder to make; one that is there stays, unless ``force`` is given.
        folders: See :func:`read_sts`.
        force: Whether to replace it.
        say: Told what happens, and which counts are not those of the papers.

    Returns:
        The finished folder.

    Raises:
        UserError: If ``out`` is something else.
    """
    if (out / PreparedSts.MARKER).is_file() and not force:
        say(f"{out}: finished before; nothing to do (--force makes it anew)")
        return PreparedSts.load(out)
    if out.exists() and any(out.iterdir()) and not (out / PreparedSts.MARKER).is_file():
        raise UserError(f"{out} exists and was not made by deltasam prepare sts; give another")
    sets = read_sts(folders)
    for line in unusual_counts(sets):
        say(f"note: {line}; averages do not compare with theirs")
    with finished_folder(out) as work:
        write_json(
            work / _PAIRS_FILE,
            {name: [asdict(file) for file in files] for name, files in sets.items()},
        )
        counts = {name: sum(file.scored for file in files) for name, files in sets.items()}
        facts = {"pairs": counts, "sha256": file_sha256(work / _PAIRS_FILE)}
        write_json(work / PreparedSts.MARKER, facts)
    say(f"{out}: finished; pairs: {', '.join(f'{n:,} {name}' for name, n in counts.items())}")
    return PreparedSts.load(out)


@dataclass(frozen=True)
class StsFile:
    """Pairs of one file.

    Args:
        name: The file's part of its set, such as ``headlines``.
        first: A sentence each.
        second: The sentences that these are compared with.
        gold: Scores as printed; an empty one is a pair that nobody scored.
    """

    name: str
    first: Sequence[str]
    second: Sequence[str]
    gold: Sequence[str]

    @property
    def scored(self) -> int:
        """How many pairs have a score."""
        return sum(bool(score.strip()) for score in self.gold)


def read_sts(folders: Sequence[Path]) -> dict[str, list[StsFile]]:
    """Read all seven sets, and STS-B's development set.

    Args:
        folders: Hold, at any depth, ``STS12-en-test`` to ``STS16-en-test``, ``STSBenchmark``
            and ``SICK_test_annotated.txt``.

    Returns:
        The files of each set, with the names of :data:`PAIRS` and :data:`DEVELOPMENT`.

    Raises:
        UserError: If a set is missing or there twice, a line is malformed, or a set has no
            capital letter, as SentEval's copies.
    """
    found: dict[str, list[StsFile]] = {}
    for name in PAIRS:
        year = _YEAR.fullmatch(name)
        if year:
            found[name] = _read_year(_one(folders, f"STS{year[1]}-en-test"))
        elif name == "STS-B":
            folder = _one(folders, "STSBenchmark")
            found[name] = [_read_benchmark(folder / "sts-test.csv")]
            found[DEVELOPMENT] = [_read_benchmark(folder / "sts-dev.csv")]
        else:
            found[name] = [_read_sick(_one(folders, "SICK_test_annotated.txt"))]
    for name, files in found.items():
        if not any(line != line.lower() for file in files for line in file.first):
            raise UserError(
                f"{name} has no capital letter: these are not the files as released, but a "
                "lower-cased copy such as SentEval's; give the folders of the original release"
            )
    return found


def unusual_counts(sets: dict[str, list[StsFile]]) -> list[str]:
    """Say which sets have not the number of scored pairs that papers report on.

    Args:
        sets: Of :func:`read_sts`.

    Returns:
        One line for each of them.
    """
    counts = {name: sum(file.scored for file in sets[name]) for name in PAIRS}
    return [
        f"{name}: {counts[name]:,} scored pairs, papers report on {expected:,}"
        for name, expected in PAIRS.items()
        if counts[name] != expected
    ]


def _one(folders: Iterable[Path], name: str) -> Path:
    there = [
        path
        for folder in folders
        for path in ([folder] if folder.name == name else sorted(folder.rglob(name)))
    ]
    if not there:
        raise UserError(
            f"no {name} in {', '.join(map(str, folders))}; give the folders of the seven sets as "
            "their organisers released them"
        )
    if len(there) > 1:
        raise UserError(
            f"{name} is there {len(there)} times: {', '.join(map(str, there))}; give one folder "
            "of each set"
        )
    return there[0]


def _read_year(folder: Path) -> list[StsFile]:
    """Read the files of a year: ``STS.input.X.txt`` with ``STS.gs.X.txt``."""
    files = []
    for path in sorted(folder.glob("STS*.input.*.txt")):
        name = path.name.split(".input.")[1].removesuffix(".txt")
        gold = _lines(path.with_name(path.name.replace(".input.", ".gs.")))
        rows = [line.split("\t") for line in _lines(path)]
        _require(path, rows, fields=2)
        if len(rows) != len(gold):
            raise UserError(f"{path}: {len(rows)} pairs, but {len(gold)} lines of scores")
        files.append(StsFile(name, [r[0] for r in rows], [r[1] for r in rows], gold))
    if not files:
        raise UserError(f"{folder} has no STS.input.*.txt")
    return files


def _read_benchmark(path: Path) -> StsFile:
    """Read STS-B: genre, file, year, number, score and two sentences, behind tabs."""
    rows = [line.split("\t") for line in _lines(path)]
    _require(path, rows, fields=7)
    return StsFile(path.stem, [r[5] for r in rows], [r[6] for r in rows], [r[4] for r in rows])


def _read_sick(path: Path) -> StsFile:
    """Read SICK's relatedness: number, two sentences, score and label, behind tabs."""
    rows = [line.split("\t") for line in _lines(path)[1:]]
    _require(path, rows, fields=4, skipped=1)
    return StsFile(path.stem, [r[1] for r in rows], [r[2] for r in rows], [r[3] for r in rows])


def _lines(path: Path) -> list[str]:
    return [line.rstrip("\r") for line in read_utf8(path).removesuffix("\n").split("\n")]


def _require(path: Path, rows: Sequence[Sequence[str]], *, fields: int, skipped: int = 0) -> None:
    for number, row in enumerate(rows, skipped + 1):
        if len(row) < fields:
            raise UserError(f"{path}: line {number} has {len(row)} fields, not {fields}")
