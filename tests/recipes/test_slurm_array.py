"""The script of an array job, as sbatch reads it, and how a sweep hands it in."""

import json
import os
import shlex
import stat
from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.slurm_array import array_script, submit


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


def test_the_array_job_is_handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ngrep -c SBATCH "$1"\ntail -n 1 "$1"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    script = array_script(["deltasam", "sweep", "x", "--grid", "lr=1 2"], 7, tmp_path, gpus=2)
    assert "--array=1-7" in script
    assert "--gpus-per-node=2 --cpus-per-task=8" in script
    said = submit(script, tmp_path).splitlines()
    assert said == ["4", """deltasam sweep x --grid 'lr=1 2' --cell "$SLURM_ARRAY_TASK_ID\""""]


def test_a_sweep_is_handed_to_slurm_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho Submitted batch job 7\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.chdir(tmp_path)
    typed = ["sweep", "glue/rte", "--model", "minilm_l6", "--seeds", "1-2", "--lr", "1e-4"]
    assert main([*typed, "--slurm"]) == 2
    assert "is not a finished data folder" in capsys.readouterr().err
    data, encoder = Path("data/glue/rte/minilm_l6"), Path("models/minilm_l6")
    for folder in (data, encoder):
        folder.mkdir(parents=True)
    (data / "prepared.json").write_text('{"kind": "sentences", "task": "RTE"}')
    (encoder / "model.json").write_text('{"bytes": 0}')
    (encoder / "model.pt").touch()
    assert main([*typed, "--slurm", "--cell", "1"]) == 2
    assert "leave --cell out" in capsys.readouterr().err
    assert main([*typed, "--slurm"]) == 0
    assert capsys.readouterr().out == "Submitted batch job 7\n"
    script = Path("sweeps/glue/rte/minilm_l6/sweep.sbatch").read_text()
    assert "#SBATCH --array=1-6" in script
    assert "--gpus-per-node" not in script  # of a model that its recipe trains on the CPU
    assert f'-m deltasam_fairseq.cli {" ".join(typed)} --cell "$SLURM' in script


def test_without_sbatch_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--slurm needs sbatch, which is not on PATH"):
        submit("#!/bin/bash\n", tmp_path)
    assert json.dumps((tmp_path / "sweep.sbatch").read_text()) == '"#!/bin/bash\\n"'
