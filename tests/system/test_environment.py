"""What scripts/environment.py decides, without installing anything."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from importlib import metadata
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


@pytest.mark.fairseq
@pytest.mark.parametrize("flavour", ["FIXED", "UPSTREAM"])
def test_what_fairseqs_tokenizers_and_bpes_import_is_installed(script: Any, flavour: str) -> None:
    from fairseq.data import encoders

    imported = set()
    for path in Path(encoders.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    assert {"sacremoses", "subword_nmt", "sentencepiece"} <= imported
    # This package's own requirements, and those of its extras for tests, come as well.
    wanted = [*getattr(script, flavour).runtime, *(metadata.requires("deltasam_fairseq") or ())]
    there = {re.split(r"[^\w-]", name)[0].replace("-", "_") for name in wanted}
    others = sys.stdlib_module_names | {"fairseq"}
    # fastBPE has no wheel and reads the codes of subword-nmt; transformers is for --bpe bert alone.
    assert imported - others - there == {"fastBPE", "transformers"}


@pytest.mark.fairseq
def test_fairseqs_moses_and_bpe_give_the_text_back(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    pytest.importorskip("subword_nmt")
    from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
    from fairseq.data.encoders.subword_nmt_bpe import SubwordNMTBPE, SubwordNMTBPEConfig

    moses = MosesTokenizer(MosesTokenizerConfig(source_lang="en", target_lang="en"))
    words = moses.encode("It's here, isn't it?")
    assert words.split() == ["It", "&apos;s", "here", ",", "isn", "&apos;t", "it", "?"]
    assert moses.decode(words) == "It's here, isn't it?"
    (codes := tmp_path / "codes").write_text("#version: 0.2\nh e\nr e</w>\n")
    bpe = SubwordNMTBPE(SubwordNMTBPEConfig(bpe_codes=str(codes)))
    assert bpe.encode("here it") == "he@@ re i@@ t"
    assert bpe.decode("he@@ re i@@ t") == "here it"


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
