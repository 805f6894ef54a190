"""A sweep as one array job of SLURM: a task per run."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deltasam_fairseq.errors import UserError


def array_script(command: Sequence[str], cells: int, folder: Path, *, gpus: int = 1) -> str:
    """Return the script for ``sbatch``.

    Partition, time and account are SLURM's own variables: ``SBATCH_PARTITION`` and so on.

    Args:
        command: The sweep's own call, without ``--slurm``.
        cells: Number of runs.
        folder: Of the sweep; logs go there.
        gpus: GPUs of one run; 0 asks for none.

    Example:
        >>> print(array_script(["deltasam", "sweep", "glue/rte"], 3, Path("out")).splitlines()[2])
        #SBATCH --array=1-3
    """
    request = [*([f"--gpus-per-node={gpus}"] if gpus else []), f"--cpus-per-task={4 * (gpus or 1)}"]
    return "\n".join(
        [
            "#!/bin/bash",
            "#SBATCH --job-name=deltasam-sweep",
            f"#SBATCH --array=1-{cells}",
            f"#SBATCH --nodes=1 --ntasks=1 {' '.join(request)}",
            f"#SBATCH --output={_quoted(folder)}",
            f'{shlex.join(command)} --cell "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )


def _quoted(folder: Path) -> str:
    """Write the name of the logs as sbatch reads it: %A and %a alone are to be replaced."""
    name = str(Path(str(folder).replace("%", "%%")) / "slurm-%A-%a.log")
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def submit(script: str, folder: Path) -> str:
    """Return what ``sbatch`` says to the script, which is kept in the folder.

    Raises:
        UserError: If there is no ``sbatch`` or it refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.sbatch"
    path.write_text(script, encoding="utf-8")
    try:
        done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            "--slurm needs sbatch, which is not on PATH; call it on a machine of the cluster, or "
            f"look at {path}"
        ) from None
    if done.returncode:
        raise UserError(f"sbatch {path}: {done.stderr.strip()}")
    return done.stdout.strip()
