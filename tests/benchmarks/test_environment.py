import re
from pathlib import Path

import pytest
import torch

import deltasam_fairseq
from deltasam_fairseq.benchmarks import environment


def test_the_machine_is_described() -> None:
    found = environment.hardware()
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**20
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_versions_are_those_that_run() -> None:
    found = environment.versions()
    assert found["torch"].startswith(torch.__version__.partition("+")[0])
    assert found["deltasam_fairseq"] == deltasam_fairseq.__version__


def test_outside_a_checkout_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(deltasam_fairseq, "__file__", str(tmp_path / "__init__.py"))
    assert environment.commit() is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.commit() is None


def test_a_commit_is_a_hash() -> None:
    found = environment.commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40,64}(-dirty)?", found)
