"""What scripts/environment.py decides, without installing anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class FakeEnvironment:
    """Knows which builds each place has, and records what is installed."""

    def __init__(self, configured: list[str], index: list[str]) -> None:
        self.configured = configured
        self.index = index
        self.installed: list[str] = []

    def cpu_builds(self, *options: str) -> list[str]:
        return self.index if "--extra-index-url" in options else self.configured

    def install(self, *arguments: str, quiet: bool = False) -> None:
        self.installed.append(arguments[0])


@pytest.mark.parametrize(
    ("configured", "index", "pin", "expected"),
    [
        (["2.13.0+cpu"], ["2.14.1+cpu"], "", "torch==2.13.0+cpu"),
        ([], ["2.14.1+cpu", "2.14.0+cpu"], "", "torch==2.14.1+cpu"),
        ([], [], "", "torch>=2.1"),
        (["2.13.0+cpu"], ["2.4.1+cpu"], "2.4.1", "torch==2.4.1+cpu"),
        (["2.13.0+cpu"], [], "2.4.1", "torch==2.4.1"),
    ],
)
def test_a_machine_without_a_gpu_gets_the_cpu_build_that_is_there(
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    configured: list[str],
    index: list[str],
    pin: str,
    expected: str,
) -> None:
    monkeypatch.setattr(script, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(script.sys, "platform", "linux")
    environment = FakeEnvironment(configured, index)
    script.install_torch(environment, pin)
    assert environment.installed == [expected]


@pytest.mark.parametrize(("gpu", "platform"), [(True, "linux"), (False, "darwin")])
def test_elsewhere_the_usual_build_is_the_right_one(
    script: Any, monkeypatch: pytest.MonkeyPatch, gpu: bool, platform: str
) -> None:
    monkeypatch.setattr(script, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(script.sys, "platform", platform)
    environment = FakeEnvironment(["2.13.0+cpu"], ["2.13.0+cpu"])
    script.install_torch(environment, "")
    assert environment.installed == ["torch>=2.1"]


def test_cpu_builds_are_read_from_pip(script: Any) -> None:
    listing = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0, 2.4.1+cpu\n"
    assert script.cpu_versions(listing) == ["2.13.0+cpu", "2.4.1+cpu"]
    assert script.cpu_versions("ERROR: No matching distribution found for torch") == []


def test_an_unsupported_python_is_told_apart(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.sys, "version_info", (3, 14, 0))
    with pytest.raises(script.EnvironmentBuildError, match=r"Python 3\.10 or 3\.11 or 3\.12"):
        script.check_machine(script.FIXED)
    with pytest.raises(script.EnvironmentBuildError, match="make PYTHON310="):
        script.check_machine(script.UPSTREAM)


def test_what_is_missing_is_named_with_its_package(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script.sys, "version_info", (3, 11, 0))
    monkeypatch.setattr(script, "has_ensurepip", lambda: False)
    monkeypatch.setattr(script.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    with pytest.raises(
        script.EnvironmentBuildError, match=r"apt-get install python3-venv python3-dev g\+\+"
    ):
        script.check_machine(script.FIXED)


def test_a_folder_that_is_no_environment_is_left_alone(script: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(script.EnvironmentBuildError, match="is no virtual environment"):
        script.Environment(tmp_path).create()
    assert (tmp_path / "thesis.tex").exists()


def test_a_second_run_does_nothing(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    builds = []
    monkeypatch.setattr(script, "check_machine", lambda flavour: None)
    monkeypatch.setattr(script, "build", lambda *arguments: builds.append(arguments))
    monkeypatch.setattr(script, "versions", lambda environment: "everything")
    assert script.main([str(tmp_path)]) == 0
    assert script.main([str(tmp_path)]) == 0
    assert len(builds) == 1
    assert script.main([str(tmp_path), "--torch", "2.4.1"]) == 0
    assert len(builds) == 2


def test_a_failed_build_is_tried_again(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise script.EnvironmentBuildError("no space left")

    monkeypatch.setattr(script, "check_machine", lambda flavour: None)
    monkeypatch.setattr(script, "build", fail)
    assert script.main([str(tmp_path)]) == 1
    assert "no space left" in capsys.readouterr().out
    assert not (tmp_path / script.STAMP).exists()


def test_a_command_that_fails_says_which(script: Any) -> None:
    with pytest.raises(script.EnvironmentBuildError, match="status 3: .*exit"):
        script.run([sys.executable, "-c", "raise SystemExit(3) or exit"])
    with pytest.raises(script.EnvironmentBuildError, match="cannot run no-such-program"):
        script.run(["no-such-program"])
