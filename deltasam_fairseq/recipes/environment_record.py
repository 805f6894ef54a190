"""What a number depends on beside its flags: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import deltasam_fairseq

_DISTRIBUTIONS = (
    *("torch", "fairseq", "fairseq-fixed", "hydra-core", "omegaconf", "numpy"),
    *("sentencepiece", "rouge-score", "tokenizers"),
)


def environment_record() -> dict[str, Any]:
    """Describe software and hardware, and how busy they are, without importing any of it."""
    return {
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "load": load(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and what it runs on, where installed."""
    found = {"python": platform.python_version(), "deltasam_fairseq": deltasam_fairseq.__version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path | None = None) -> str | None:
    """Return the commit that the files of a folder, else of this package, are from.

    Returns:
        The commit, with ``+changes`` behind it if files of the folder differ from it or are
        new, or none if git does not track the folder or has no commit yet.
    """
    git = ["git", "-C", str(folder or Path(deltasam_fairseq.__file__).parent)]
    try:
        if _output([*git, "ls-files", "--error-unmatch", "."]) is None:
            return None
        head = _output([*git, "rev-parse", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "."])
    except OSError:
        return None
    return f"{head}+changes" if head and changes else head


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, cores and threads this process may use, GPUs."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": processor(),
        "cores": cores(),
        "threads": threads(),
    }
    if shutil.which("nvidia-smi"):
        found["gpus"] = gpus()
    return found


def gpus() -> list[str]:
    """Name the NVIDIA GPUs of the machine, as far as a driver serves them."""
    try:
        listing = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    except OSError:
        return []
    return (listing or "").splitlines()


def processor() -> str:
    """Name the processor, as well as the operating system knows it.

    Returns:
        The name, on Linux with family, model and stepping where it has them: virtual machines
        give one name, such as AMD EPYC, to generations that differ in speed by several times.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    # One block of lines per core, all alike: what comes first is kept.
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or "unknown"
    numbers = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    if any(key not in facts for key in numbers.values()):
        return name
    return f"{name} ({', '.join(f'{said} {facts[key]}' for said, key in numbers.items())})"


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int | None:
    """Return the threads of one operator that the environment allows, or none if it does not say.

    Without ``OMP_NUM_THREADS`` torch decides by itself, and does not before it is imported.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else None


def load() -> float | None:
    """Return how many processes wanted to run, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _output(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
