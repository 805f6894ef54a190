"""The script of an array job, as sbatch reads it."""

import shlex
from pathlib import Path

import pytest

from deltasam_fairseq.recipes.slurm_array import array_script


def options(folder: Path, gpus: int) -> list[str]:
    lines = array_script(["deltasam", "sweep"], 3, folder, gpus=gpus).splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("sweeps/x", '--output="sweeps/x/slurm-%A-%a.log"'),
        ("my sweeps/x #2", '--output="my sweeps/x #2/slurm-%A-%a.log"'),
        ('a "b"', r'--output="a \"b\"/slurm-%A-%a.log"'),
        # sbatch would put the job's number in the place of %j.
        ("10%j", '--output="10%%j/slurm-%A-%a.log"'),
    ],
)
def test_the_log_lies_in_the_folder_whatever_its_name(folder: str, line: str) -> None:
    assert options(Path(folder), 1)[-1] == line
    [argument] = shlex.split(line)
    assert argument == f"--output={folder.replace('%', '%%')}/slurm-%A-%a.log"


def test_a_run_without_a_gpu_asks_for_none() -> None:
    assert "--nodes=1 --ntasks=1 --cpus-per-task=4" in options(Path("x"), 0)
    assert "--nodes=1 --ntasks=1 --gpus-per-node=1 --cpus-per-task=4" in options(Path("x"), 1)
