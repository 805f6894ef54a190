"""The single files of examples/, as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.cli.main import main
from examples.plain_pytorch import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loop_learns(method: str) -> None:
    losses = train(method, epochs=12)
    assert losses[-1] < 0.6 * losses[0]


def test_the_plain_loop_is_a_program() -> None:
    command = [sys.executable, str(ROOT / "examples/plain_pytorch.py"), "sam"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # with its limit of one thread
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sam: loss ")


def test_a_recipe_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--recipe-file", str(ROOT / "examples/own_recipe.py")]
    command = ["train", "my/mrpc", *recipe, "--model", "minilm_l6", "--method", "sam", "--dry-run"]
    assert main(command) == 0
    assert "--lr 2.5e-05" in capsys.readouterr().out
