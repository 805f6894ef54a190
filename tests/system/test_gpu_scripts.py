"""The scripts for a GPU that is there for minutes; `make gpu-rehearse` runs them whole."""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deltasam_fairseq.benchmarks.plan import Plan
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.cli import bench
from deltasam_fairseq.cli.main import main
from deltasam_fairseq.cli.options import values_of
from deltasam_fairseq.recipes.sweep_plan import plan

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


sys.path.append(str(SCRIPTS))  # as Python does for a script in it
gpu, report, bundle = (load(name) for name in ("gpu", "gpu_report", "gpu_bundle"))
gpu_session = sys.modules["gpu_session"]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(gpu_session.signal, "signal", lambda *_: None)
    monkeypatch.setattr(gpu_session.tempfile, "mkdtemp", lambda **_: str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    made = gpu_session.Session(tmp_path / "out", 1.0, sys.executable)
    yield made
    made.log.close()


def test_the_most_valuable_cells_come_first() -> None:
    found = gpu.cells([("mrpc", "cola"), ("rte",)], ("0.01", "0.02"), 2)
    assert len(set(found)) == len(found)
    assert [(c.task, c.method) for c in found[:10]] == [
        (task, method) for task in ("mrpc", "cola") for method in gpu.CELLS
    ]
    # Two seeds of both tasks, then those of the third, and only then another radius.
    assert {c.task for c in found[:20]} == {"mrpc", "cola"}
    assert {c.rho for c in found[:30]} == {"0.01"}
    assert all(c.rho == "0.02" and c.method != "none" for c in found[30:])


def test_a_cell_is_called_what_the_sweep_calls_it() -> None:
    for method in gpu.CELLS:
        (named,) = plan([method], [3], {"rho": ["0.02"]})
        assert gpu.Cell("rte", method, 3, "0.02").name == named.name


def test_every_command_is_one_that_deltasam_knows(
    session: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    sizes = {"bert_base": (32, 127), "roberta_large": (16, 127), "bart_large": (4, 1024)}
    for timing in gpu.TIMINGS:
        made = Plan(**values_of(Plan, parser.parse_args(["step", *timing.flags.split()])))
        (model,) = made.models
        shape = WORKLOADS[model][made.size].ordered(made.sentences, made.tokens).shape
        assert (shape.sentences, shape.longest) == sizes[model]
    assert made.update_freq * shape.sentences * shape.longest == 65_536
    assert shape.target == (128, 128)
    command = gpu.sweep_command(
        session, gpu.Cell("mrpc", "sam", 1, "0.01"), rehearse=False, risk=True
    )
    assert main([*command[command.index("sweep") :], "--dry-run"]) == 0
    printed = capsys.readouterr().out.split()
    assert "--cpu" not in printed
    assert printed[printed.index("--sam-rho") + 1] == "0.01"


def test_what_takes_too_long_is_ended_with_all_that_it_started(
    session: Any, tmp_path: Path
) -> None:
    inner = f"import time; time.sleep(1.5); open({str(tmp_path / 'late')!r}, 'w')"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert session.run([sys.executable, "-c", outer], tmp_path, 1.0) is None
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()
    assert session.running == []
    session.end = time.monotonic() - 1
    assert session.run([sys.executable, "-c", ""], tmp_path, 60) is None


def test_an_error_of_one_part_is_kept_and_the_next_one_runs(session: Any) -> None:
    def broken() -> None:
        raise OSError("no space")

    session.keep("begun", minutes=1, rehearsal=True)
    with session.step("tests"):
        broken()
    session.keep("ended")
    steps = [json.loads(x) for x in (session.out / "results.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == ["begun", "tests", "ended"]
    assert "OSError: no space" in (session.out / "summary.md").read_text()


def test_whoever_stops_it_stops_all_of_it(session: Any) -> None:
    with pytest.raises(gpu_session.Ended), session.step("tests"):
        gpu_session.stop()


def test_a_cut_line_costs_nothing_but_itself(tmp_path: Path) -> None:
    cell = {"step": "cell", "at": 2, "task": "rte", "method": "sam", "rho": "0.01", "seconds": 9.0}
    steps = [
        {"step": "begun", "at": 0, "minutes": 9, "rehearsal": False},
        *({**cell, "seed": n, "metrics": {"accuracy": 50.0 + n}} for n in (2, 1, 4)),
        {**cell, "seed": 3, "failed": "cut off"},
        {**cell, "seed": 5, "failed": "Traceback\nRuntimeError: no kernel"},
    ]
    text = "\n".join(json.dumps(step) for step in steps)
    (tmp_path / "results.jsonl").write_text(text + '\n{"step": "cell", "tas')
    report.main(tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    assert "still running, or killed" in summary
    assert "| rte | `sam` | 0.01 | accuracy | 3 | 52.00 | 51.00, 52.00, 54.00 | 9 |" in summary
    assert "3 finished, 1 cut off, 1 failed." in summary
    assert "RuntimeError: no kernel" in summary


def test_a_slim_wheel_has_a_true_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stripped: list[str] = []
    monkeypatch.setattr(bundle, "run", lambda command: stripped.append(Path(command[-1]).name))
    wheel, record = tmp_path / "fairseq.whl", "fairseq-1.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as packed:
        for name in ("fairseq/a.py", "fairseq/examples/b.py", "fairseq/c.so", record):
            packed.writestr(name, f"content of {name}")
    bundle.slim(wheel, tmp_path)
    with zipfile.ZipFile(wheel) as packed:
        assert sorted(packed.namelist()) == [record, "fairseq/a.py", "fairseq/c.so"]
        rows = [line.split(",") for line in packed.read(record).decode().splitlines()]
        for name, digest, size in rows[:-1]:
            content = packed.read(name)
            hashed = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
            assert (digest, int(size)) == (f"sha256={hashed.rstrip('=')}", len(content))
    assert rows[-1] == [record, "", ""]
    assert stripped == ["c.so"]


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("data/glue/rte/minilm_l6/pieces/train.input0", True),
        ("data/glue/rte/minilm_l6/bin/input0/test.bin", True),
        ("data/glue/rte/minilm_l6/bin/input0/valid.bin", False),
        ("data/glue/rte/minilm_l6/raw/valid.label", False),
        ("tests/core/test.py", False),
    ],
)
def test_the_bundle_has_what_a_sweep_reads(name: str, left_out: bool) -> None:
    assert bundle.unread(name) == left_out


def test_a_stub_can_be_imported_and_says_why_it_cannot_be_called(tmp_path: Path) -> None:
    gpu.stub(tmp_path / "sklearn", gpu.STUBS["sklearn"])
    code = "from sklearn.metrics import f1_score, matthews_corrcoef as m; f1_score([1], y=2)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stderr.strip().endswith("ImportError: sklearn is not installed")


def test_without_a_gpu_it_says_so_at_once(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [str(SCRIPTS / "gpu.sh"), "--out", str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "DELTASAM_INSTALLED": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no GPU that torch can use; --rehearse does without" in done.stdout
    assert "no GPU that torch can use" in (tmp_path / "summary.md").read_text()


@pytest.mark.fairseq
def test_the_bundle_has_all_that_the_tests_of_a_device_import(
    tmp_path: Path, warm_python: str
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    bundle.pack(tmp_path / "tree.tar.xz", tree)
    marked = sorted(
        str(path.relative_to(SCRIPTS.parent))
        for path in (SCRIPTS.parent / "tests").rglob("test_*.py")
        if path != Path(__file__) and "device: torch.device" in path.read_text()
    )
    assert marked
    assert [path for path in marked if not path.startswith(gpu.TEST_FOLDERS)] == []
    command = [warm_python, "-m", "pytest", "--collect-only", "-q", "-m", "gpu"]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", *marked]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert [path for path in marked if path not in collected] == []
