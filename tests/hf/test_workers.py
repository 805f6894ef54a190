"""Two workers of the Trainer are one with the sentences of both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from tests.hf.test_trainer import METHODS, causal, rows, trained  # noqa: E402
from tests.support.workers import run_workers  # noqa: E402

GIVEN = {"max_grad_norm": 0.5}


def model() -> Any:
    """Return a model whose loss is divided by the labels of the whole update, on both workers."""
    return causal().double()


def worker(rank: int, count: int, port: int, folder: Path) -> list[Tensor]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, count, "127.0.0.1", port)
    os.environ.update(zip(names, map(str, values), strict=True))
    parts: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts |= {"ddp_backend": "gloo", **GIVEN}
    found = [trained(folder, model(), rows(kind="tokens"), m, **parts) for m in METHODS]
    # Groups of one sentence of each worker.
    return [*found, trained(folder, model(), rows(kind="tokens"), "sam", groups=4, **parts)]


@pytest.mark.multiprocess
def test_two_workers_are_one(tmp_path: Path) -> None:
    first, second = run_workers(worker, 2, tmp_path, tmp_path)
    for method, one, other in zip((*METHODS, "per_instance"), first, second, strict=True):
        assert torch.equal(one, other)
        whole = trained(tmp_path, model(), rows(kind="tokens"), method, **GIVEN)
        torch.testing.assert_close(one, whole, rtol=0, atol=1e-9)
