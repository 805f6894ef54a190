"""Use a GPU that is there for minutes: tests, times, table cells, in order of worth.

Results come as they are found, so that whatever ends it, time or an error, what was found is
kept. In OUT:

    results.jsonl   one JSON object for each step, flushed
    summary.md      made of it after each step, by gpu_report.py
    log.txt         what every program said
    records.tar     records of finished runs, for ``deltasam table``

Standard library only: it runs before anything is installed. docs/gpu.md says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_session import Ended, Session

HERE = Path(__file__).resolve().parent
INSTALL, TESTS = 90.0, 120.0  # seconds at most
METHODS = ("none", "sam", "delta_sam", "per_instance")
CELLS = ("none", "sam", "delta_sam", "random", "per_instance")
TEST_FOLDERS = ("tests/core", "tests/per_instance", "tests/fairseq_plugin", "tests/benchmarks")
# As tests/cli/test_glue_end_to_end.py makes them: a BERT of two layers and 24 pairs.
TOY = """
from pathlib import Path
from deltasam_fairseq.cli.main import main
from tests.support.encoder_toys import write_bert, write_tables
write_bert(Path("hf")), write_tables(Path("tables"))
main(["prepare", "encoder", "hf", "--out", "models/minilm_l6"])
main("prepare glue/rte --glue tables --model minilm_l6 --max-tokens 10 --workers 1".split())
"""
TINY = (
    "--size tiny --sentences 4 --tokens 6 --update-freq 2 --repeats 2 --seconds 5 --device cpu "
    "--threads 1"
)
TOY_FLAGS = (
    "--encoder-layers 2 --encoder-embed-dim 12 --encoder-ffn-embed-dim 20 "
    "--encoder-attention-heads 3 --max-positions 26 --max-epoch 1 --batch-size 8 "
    "--total-num-update 3 --warmup-updates 1"
).split()
DEVICE = """
import json, torch
there = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    "memory_bytes": torch.cuda.get_device_properties(0).total_memory if there else 0,
    "sum": float(torch.ones(4, device="cuda").sum()) if there else None,
}))
"""
# fairseq imports these for metrics of other tasks and files of other kinds. They are too large
# to bring.
STUBS: dict[str, dict[str, tuple[str, ...]]] = {
    "sklearn": {"metrics": ("f1_score", "matthews_corrcoef", "roc_curve")},
    "scipy": {"stats": ("pearsonr", "spearmanr")},
    "lxml": {"etree": ()},
}


@dataclass(frozen=True)
class Timing:
    """One call of ``deltasam bench step``.

    Args:
        name: What to call it.
        flags: Model, shape and precision.
        seconds: How long rounds may begin; building models comes before.
    """

    name: str
    flags: str
    seconds: int


# In order of worth. fp16 is what fairseq's README and the paper's code have for all of them.
TIMINGS = (
    Timing("BERT-base, 32 x 128", "--model bert_base --sentences 32 --tokens 128", 20),
    Timing("RoBERTa-large, 16 x 128", "--model roberta_large", 35),
    Timing("BART-large, 4 x (1,024 + 128)", "--model bart_large --sentences 4", 40),
    Timing("BART-large, 65,536 tokens", "--model bart_large --sentences 4 --update-freq 16", 75),
)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        task: Name of the GLUE task.
        method: How the weights are perturbed.
        seed: Its seed.
        rho: Radius, as typed.
    """

    task: str
    method: str
    seed: int
    rho: str

    @property
    def name(self) -> str:
        """What ``deltasam sweep`` calls its record."""
        radius = "" if self.method == "none" else f"-rho{self.rho}"
        return f"{self.method}{radius}-seed{self.seed}"


def cells(tasks: Sequence[Sequence[str]], radii: Sequence[str], seeds: int) -> list[Cell]:
    """List the runs, the most valuable first.

    Args:
        tasks: Groups of tasks; all of a group come before the next.
        radii: The first one for all groups before the others.
        seeds: How many; each task and method has its first before any has its second.

    Returns:
        Each run once: ``none`` has no radius.
    """
    found = [
        Cell(task, method, seed, rho if method != "none" else radii[0])
        for some in (radii[:1], radii[1:])
        for group in tasks
        for seed in range(1, seeds + 1)
        for rho in some
        for task in group
        for method in CELLS
    ]
    return list(dict.fromkeys(found))


def unpack(session: Session, bundle: Path) -> Path:
    """Install what a bundle has into a folder, and unpack the rest.

    Args:
        session: The session; its programs find what was installed from then on.
        bundle: Of ``scripts/gpu_bundle.sh``.

    Returns:
        Where tests, data and models are.
    """
    site, tree = session.work / "site", session.work / "tree"
    wheels = sorted(str(path) for path in (bundle / "wheels").glob("*.whl"))
    # A folder, and not a virtual environment: one made of another does not see its packages.
    pip = [session.python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--target", str(site)]
    began = time.monotonic()
    status = session.run([*pip, *wheels], session.work, INSTALL)
    if status:  # a wheel of these is no more than its files
        for wheel in wheels:
            zipfile.ZipFile(wheel).extractall(site)
    for package, modules in STUBS.items():
        if session.run([session.python, "-c", f"import {package}"], session.work, 30):
            stub(site / package, modules)
    with tarfile.open(bundle / "tree.tar.xz") as packed:
        packed.extractall(tree, filter="data")
    session.variables["PYTHONPATH"] = str(site)
    commit = (tree / "commit.txt").read_text().strip()
    seconds = round(time.monotonic() - began, 1)
    session.keep("install", status=status, seconds=seconds, wheels=len(wheels), commit=commit)
    return Path(tree)


def stub(folder: Path, modules: dict[str, tuple[str, ...]]) -> None:
    """Write a package whose functions can be imported, and say why they cannot be called."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    text = "def {0}(*_, **__):\n    raise ImportError('{1} is not installed')\n\n\n"
    for module, names in modules.items():
        functions = "".join(text.format(name, folder.name) for name in names)
        (folder / f"{module}.py").write_text(functions)


def check_device(session: Session, folder: Path) -> bool:
    """Find out what there is.

    Args:
        session: The session.
        folder: Where to run.

    Returns:
        Whether there is a GPU that works.
    """
    with (session.out / "device.json").open("w+b") as file:
        status = session.run([session.python, "-W", "ignore", "-c", DEVICE], folder, 60, file)
        file.seek(0)
        text = file.read().decode()
    (session.out / "device.json").unlink()
    found = json.loads(text) if status == 0 else {}
    session.keep(
        "device",
        status=status,
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)),
        device=found,
    )
    return found.get("sum") == 4.0


def run_tests(session: Session, folder: Path, *, rehearse: bool) -> None:
    """Run the tests of the device; what they said so far is kept if time runs out."""
    # Of those that a GPU would run, some that take a CPU seconds.
    chosen = ["-m", "device and not gpu", "-k", "generator or fused or tf32"]
    parallel = ["-p", "xdist.plugin", "-n", str(max(1, min(8, len(os.sched_getaffinity(0)) // 2)))]
    command = [session.python, "-W", "ignore", "-m", "pytest", "-v", "--tb=short", "-p"]
    command += ["no:cacheprovider", "--continue-on-collection-errors"]
    command += [*(chosen if rehearse else ["-m", "gpu"]), *parallel, *TEST_FOLDERS]
    path = session.work / "tests.txt"
    session.variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    began = time.monotonic()
    with path.open("wb") as file:
        status = session.run(command, folder, TESTS, file)
    text = path.read_text(errors="replace")
    session.log.write(text.encode())
    # xdist's lines, one for each test that has ended.
    seen = re.findall(r"^\[gw\d+\] \[ *\d+%\] ([A-Z]+) (tests/.*?)\s*$", text, re.MULTILINE)
    outcomes = {test: outcome for outcome, test in seen}
    counts = {o: list(outcomes.values()).count(o) for o in dict.fromkeys(outcomes.values())}
    wrong = sorted(test for test, o in outcomes.items() if o in {"FAILED", "ERROR"})
    failed = {} if counts.get("PASSED") and not wrong and status in {0, None} else {"failed": "yes"}
    session.keep(
        "tests",
        status=status,
        finished=status is not None,
        seconds=round(time.monotonic() - began, 1),
        **counts,
        wrong=wrong,
        **failed,
        end=text[-2000:] if status not in {0, None} else "",
    )


def run_timings(session: Session, folder: Path, *, rehearse: bool) -> None:
    """Measure the methods side by side; if that fails, each of them beside ``none``."""
    flags = TINY if rehearse else "--repeats 40"
    for timing in TIMINGS[::3] if rehearse else TIMINGS:
        if session.left < 30:
            session.keep("timing", name=timing.name, failed="no time left")
            continue
        if time_methods(session, folder, timing, METHODS, flags) or session.left < 60:
            continue
        for method in METHODS[1:]:
            time_methods(session, folder, timing, ("none", method), flags)


def time_methods(
    session: Session, folder: Path, timing: Timing, methods: Sequence[str], flags: str
) -> bool:
    """Run one benchmark, and keep its record.

    Args:
        session: The session.
        folder: Where to run.
        timing: What to measure.
        methods: On which methods.
        flags: How.

    Returns:
        Whether there is a record.
    """
    command = [*session.deltasam, "bench", "step", *timing.flags.split()]
    command += ["--precision", "fp16", "--profile", "--json"]
    command += ["--seconds", str(timing.seconds), "--methods", ",".join(methods), *flags.split()]
    path = session.work / "timing.json"
    began = time.monotonic()
    with path.open("wb") as file:
        status = session.run(command, folder, 2 * timing.seconds + 90, file)
    took = round(time.monotonic() - began, 1)
    text = path.read_text(errors="replace")
    record = json.loads(text) if status == 0 else None
    failed = {} if record else {"failed": "cut off" if status is None else f"status {status}"}
    session.keep(
        "timing", name=timing.name, methods=",".join(methods), seconds=took, record=record, **failed
    )
    return record is not None


def run_cells(session: Session, folder: Path, *, rehearse: bool, risk: bool) -> None:
    """Train, several at once, until the time is over."""
    grid = [("rte",)] if rehearse else [("mrpc", "cola"), ("sts-b", "rte")]
    todo = cells(grid, ("0.01", "0.02", "0.05"), 5)
    todo = todo[: len(CELLS) : 2] if rehearse else todo
    cores = len(os.sched_getaffinity(0))
    room = 2 if rehearse else max(1, min(12, cores - 2))
    (session.work / "sweeps").mkdir(exist_ok=True)
    busy: dict[subprocess.Popen[bytes], tuple[Cell, float]] = {}
    before = session.failures
    # If the first of all methods and tasks fail, so will the others.
    while (todo or busy) and session.left > 0 and session.failures < before + 2 * len(CELLS):
        while todo and len(busy) < room:
            cell = todo.pop(0)
            command = sweep_command(session, cell, rehearse=rehearse, risk=risk)
            with (session.work / f"{cell.task}-{cell.name}.txt").open("wb") as output:
                busy[session.start(command, folder, output)] = cell, time.monotonic()
        time.sleep(0.2)
        for process in [p for p in busy if p.poll() is not None]:
            cell, began = busy.pop(process)
            session.kill(process)
            keep_cell(session, cell, time.monotonic() - began)
    for process, (cell, began) in busy.items():
        session.kill(process)
        keep_cell(session, cell, time.monotonic() - began, cut_off=True)
    session.keep("cells", not_begun=len(todo))


def sweep_command(session: Session, cell: Cell, *, rehearse: bool, risk: bool) -> list[str]:
    """Return the call of ``deltasam sweep`` for one run."""
    command = [
        *session.deltasam,
        "sweep",
        f"glue/{cell.task}",
        "--model",
        "minilm_l6",
        "--methods",
        cell.method,
    ]
    command += ["--seeds", str(cell.seed), "--grid", f"rho={cell.rho}", "--discard-checkpoints"]
    command += ["--out", str(session.work / "sweeps" / "glue" / cell.task / "minilm_l6")]
    command += ["--adversarial-risk", "0.05"] if risk else []
    command += TOY_FLAGS if rehearse else ["--gpus", "1"]
    # A run that is cut off is not gone on with, and twelve of them share a disk.
    return [*command, "--no-last-checkpoints", "--no-save-optimizer-state"]


def keep_cell(session: Session, cell: Cell, seconds: float, *, cut_off: bool = False) -> None:
    """Keep a run's record, or the end of what it said."""
    sweep = Path("glue", cell.task, "minilm_l6", "records", f"{cell.name}.json")
    path = session.work / "sweeps" / sweep
    about: dict[str, Any] = {"task": cell.task, "method": cell.method, "seed": cell.seed}
    about |= {"rho": cell.rho, "seconds": round(seconds, 1)}
    if path.is_file():
        with tarfile.open(session.out / "records.tar", "a") as packed:
            packed.add(path, str(Path("sweeps", sweep)))
        record = json.loads(path.read_text(encoding="utf-8"))
        about |= {"metrics": record["metrics"], "updates": record["updates"]}
        session.keep("cell", **about, risk=record.get("adversarial_risk"))
    elif cut_off:
        session.keep("cell", **about, failed="cut off")
    else:
        said = (session.work / f"{cell.task}-{cell.name}.txt").read_text(errors="replace")
        session.keep("cell", **about, failed=said[-1500:])


def main() -> int:
    """Do as much as time allows.

    Returns:
        Zero, or 1 if there is no GPU, or something of a rehearsal failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock (%(default)s)")
    parser.add_argument("--bundle", type=Path, help="made by gpu_bundle.sh; default: beside this")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--parts", default="tests,timings,cells", help="(%(default)s)")
    parser.add_argument("--adversarial-risk", action="store_true", help="of each cell: Eq. 2")
    options = parser.parse_args()
    session = Session(options.out.resolve(), options.minutes, sys.executable)
    rehearse, parts = options.rehearse, options.parts.split(",")
    session.keep("begun", minutes=options.minutes, rehearsal=rehearse)
    try:
        if os.environ.get("DELTASAM_INSTALLED"):
            folder = HERE.parent
            session.variables["PYTHONPATH"] = str(folder)
        else:
            folder = unpack(session, (options.bundle or HERE).resolve())
        if not check_device(session, folder) and not rehearse:
            session.keep("ended", failed="no GPU that torch can use; --rehearse does without")
            return 1
        where = folder
        if rehearse and "cells" in parts:
            where = session.work / "toy"
            where.mkdir()
            session.variables["PYTHONPATH"] += f"{os.pathsep}{folder}"
            session.run([session.python, "-W", "ignore", "-c", TOY], where, 60)
        if "tests" in parts:
            with session.step("tests"):
                run_tests(session, folder, rehearse=rehearse)
        if "timings" in parts:
            with session.step("timing"):
                run_timings(session, session.work, rehearse=rehearse)
        if "cells" in parts:
            with session.step("cells"):
                if not rehearse:
                    prepare = "prepare encoder minilm --out models/minilm_l6".split()
                    session.run([*session.deltasam, *prepare], where, 60)
                run_cells(session, where, rehearse=rehearse, risk=options.adversarial_risk)
    except (Ended, KeyboardInterrupt):
        session.keep("ended", failed="stopped from outside")
        return 1
    finally:
        for process in list(session.running):
            session.kill(process)
        shutil.rmtree(session.work, ignore_errors=True)
    session.keep("ended")
    return 1 if rehearse and session.failures else 0


if __name__ == "__main__":
    sys.exit(main())
