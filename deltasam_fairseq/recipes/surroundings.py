"""What a number depends on beside its flags: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from deltasam_fairseq import __version__

_DISTRIBUTIONS = (
    *("torch", "fairseq", "fairseq-fixed", "numpy"),
    *("sentencepiece", "rouge-score", "tokenizers"),
)


def surroundings() -> dict[str, Any]:
    """Describe software and hardware, without importing any of it.

    Returns:
        ``versions``, ``commit`` (of this project's checkout, or none) and ``hardware``.
    """
    return {"versions": versions(), "commit": commit(), "hardware": hardware()}


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and what it runs on, where installed."""
    found = {"python": platform.python_version(), "deltasam_fairseq": __version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Return the commit that a folder's files are from.

    Args:
        folder: A folder of a checkout; this package's own when left out.

    Returns:
        The commit, with ``+changes`` behind it if tracked files differ, or
        none if git does not track the folder.
    """
    git = ["git", "-C", str(folder)]
    try:
        if _output([*git, "ls-files", "--error-unmatch", "."]) is None:
            return None
        head = _output([*git, "rev-parse", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    except FileNotFoundError:
        return None
    return f"{head}+changes" if head and changes else head


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, cores this process may use, GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"machine": platform.machine(), "cpu": _processor(), "cores": cores}
    if shutil.which("nvidia-smi"):
        listing = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
        found["gpus"] = (listing or "").splitlines()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _output(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
