"""What holds for every test: seeds, one thread, and what is skipped where."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# Several test processes share the machine, and so do the processes they start.
# Read when torch is imported, hence above it.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# Helpers, no tests: the search for doctests would import them once more.
collect_ignore = [
    str(path)
    for path in (Path(__file__).parent / "support").glob("*.py")
    if not path.name.startswith("test_")
]

# The same examples in every run, and no limit that a busy machine would break.
hypothesis.settings.register_profile("deltasam", deadline=None, derandomize=True)
hypothesis.settings.load_profile("deltasam")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    missing = {}
    if importlib.util.find_spec("fairseq") is None:
        missing["fairseq"] = "fairseq is not installed"
    if not torch.cuda.is_available():
        missing["gpu"] = "no GPU that torch can use"
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("device")
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state and one thread, whatever ran before it.

    Benchmarks and analyses set the number of threads of their process, and sums over
    two threads round otherwise than those of the processes that a test starts.
    """
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return where to compute: what a GPU is tested with has run on a CPU."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of downloaded data sets, named by ``DELTASAM_DATA``."""
    folder = os.environ.get("DELTASAM_DATA")
    if not folder:
        pytest.skip("DELTASAM_DATA does not name the folder of downloaded data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"DELTASAM_DATA is {folder!r}, which is not a folder")
    return path


@pytest.fixture(scope="module", autouse=True)
def no_best_checkpoint_yet() -> None:
    """Let the trainings of a module be compared with those of no other: fairseq keeps the best."""
    if "fairseq" in sys.modules:
        from fairseq import checkpoint_utils

        vars(checkpoint_utils.save_checkpoint).pop("best", None)


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """Return a program that runs as ``python`` does, with torch and fairseq imported already."""
    pytest.importorskip("fairseq")
    from tests.support import warm_python

    with warm_python.warm_python() as program:
        yield program


@pytest.fixture
def warm_programs(warm_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the package starts as ``sys.executable`` run in the warm Python."""
    monkeypatch.setattr(sys, "executable", warm_python)
