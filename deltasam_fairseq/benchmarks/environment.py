"""What a number was measured on and with: what records of runs say, and what torch knows."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from deltasam_fairseq.recipes.environment_record import commit, cores, load, processor, versions

__all__ = ["commit", "cores", "hardware", "load", "versions"]


def hardware() -> dict[str, Any]:
    """Describe the machine.

    Returns:
        Processor, cores that this process may use, memory in bytes, and the
        GPUs that torch can use.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "machine": platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
    }
