"""Toy data sets, written once per run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import utils  # noqa: E402

from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402


@pytest.fixture(scope="session")
def translation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pairs of sentences whose targets are the reversed sources."""
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("translation"))


@pytest.fixture(scope="session")
def prediction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return sentences with one of two classes."""
    return fairseq_data.write_prediction_data(tmp_path_factory.mktemp("prediction"))


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return sentences with a number each."""
    return fairseq_data.write_prediction_data(
        tmp_path_factory.mktemp("regression"), regression=True
    )


@pytest.fixture(scope="session")
def monolingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return sentences alone."""
    return fairseq_data.write_monolingual_data(tmp_path_factory.mktemp("monolingual"))


@pytest.fixture
def device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Let fairseq's trainers compute there: in every precision as far as a CPU can."""
    if device.type == "cpu":
        toys.precision_without_gpu(monkeypatch)
    else:
        monkeypatch.setattr(toys, "COMMON", toys.without_cpu())
    return device


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Keep fairseq's attention, which computes its softmax in float32, in float64."""
    monkeypatch.setattr(utils, "softmax", lambda x, dim, onnx_trace=False: x.softmax(dim))
    return torch.float64
