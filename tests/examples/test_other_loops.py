"""The loops of docs/plain_pytorch.md that need a package of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core import DeltaSAM
from tests.support.compare import assert_same_bits, copies
from tests.support.problems import mlp

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plain_pytorch.md").read_text(encoding="utf-8")


@pytest.fixture
def accumulating() -> Any:
    """Return a class of Accelerators that accumulate two batches; none is left behind."""
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    yield lambda: accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_the_loop_for_accelerate_runs() -> None:
    pytest.importorskip("accelerate")
    (code,) = re.findall(r"<!-- accelerate -->\n```python\n(.*?)^```$", PAGE, re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"loss (0\.\d+)\n", done.stdout)
    assert found and float(found[1]) < 0.69  # log 2, of a guess


@pytest.mark.parametrize("used", ["prepared", "as it is"])
def test_an_accelerator_that_accumulates_may_drop_no_batch(accumulating: Any, used: str) -> None:
    problem = mlp()
    made = DeltaSAM(torch.optim.SGD(problem.params, lr=0.1), method="sam")
    accelerator = accumulating()
    model, optimizer = accelerator.prepare(problem.model, made)
    problem.model = model
    before = copies(problem.named)
    with pytest.raises(RuntimeError, match=r"Do not prepare.*step\(\[closure, closure, …\]\)"):
        for update in range(2):
            with accelerator.accumulate(model):
                (optimizer if used == "prepared" else made).step(problem.losses(update))
    assert_same_bits(problem.named, before)


def test_the_way_that_the_refusal_names_works(accumulating: Any) -> None:
    problem, plain = mlp(), mlp()
    accelerator = accumulating()
    problem.model = accelerator.prepare(problem.model)
    for p in (problem, plain):
        optimizer = DeltaSAM(torch.optim.SGD(p.params, lr=0.1), method="sam")
        optimizer.step([p.losses(0), p.losses(1)])
    assert_same_bits(problem.params, plain.params)


def test_a_prepared_optimizer_that_does_not_accumulate_keeps_its_report() -> None:
    accelerate = pytest.importorskip("accelerate")
    problem = mlp(dtype=torch.float32)
    made = DeltaSAM(torch.optim.SGD(problem.params, lr=0.1), method="sam")
    optimizer = accelerate.Accelerator(cpu=True).prepare(made)
    optimizer.step(problem.losses())
    assert optimizer.optimizer.report.sharpness > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_example_for_lightning_learns(method: str) -> None:
    pytest.importorskip("lightning")
    from examples.lightning_manual import train

    losses = train(method, epochs=12)
    assert len(losses) == 12 * 8
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
