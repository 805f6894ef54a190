"""What a number was measured on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import deltasam_fairseq

_DISTRIBUTIONS = ("torch", "numpy", "fairseq", "fairseq-fixed", "hydra-core", "omegaconf")


def hardware() -> dict[str, Any]:
    """Describe the machine.

    Returns:
        Processor, cores that this process may use, memory in bytes, and the
        GPUs that torch can use.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
    }


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """List the versions of what took part.

    Returns:
        Version by name: this package, Python, and those distributions that are
        installed.
    """
    found = {"deltasam_fairseq": deltasam_fairseq.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Name the commit that this package was run from.

    Returns:
        The hash, with ``-dirty`` behind it if files of the package differ from
        it; ``None`` outside a checkout, or before its first commit.
    """
    package = Path(deltasam_fairseq.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    revision = _git(package, "rev-parse", "HEAD")
    if revision is None:
        return None
    return f"{revision}-dirty" if _git(package, "status", "--porcelain", ".") else revision


def load() -> float | None:
    """Return how many processes wanted to run, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()
