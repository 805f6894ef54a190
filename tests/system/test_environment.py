"""What scripts/environment.py decides, without installing anything."""

from __future__ import annotations

import ast
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from scripts import environment

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path("python")


def listing(*builds: str) -> str:
    return f"torch (2.15.0+cpu)\nAvailable versions: {', '.join(builds)}\n  INSTALLED: 2.0.0+cpu\n"


@pytest.mark.parametrize(
    ("configured", "index", "pin", "expected"),
    [
        (["2.14.0", "2.13.0+cpu"], ["2.14.1+cpu"], "", "torch==2.13.0+cpu"),
        (["2.14.0"], ["2.14.1+cpu", "2.14.0+cpu"], "", "torch==2.14.1+cpu"),
        ([], [], "", "torch>=2.1"),
        (["2.13.0+cpu"], ["2.13.0+cpu", "2.4.1+cpu"], "2.4.1", "torch==2.4.1+cpu"),
        (["2.13.0+cpu"], ["2.4.1"], "2.4.1", "torch==2.4.1"),
    ],
)
def test_a_machine_without_a_gpu_gets_the_cpu_build_that_is_there(
    configured: list[str],
    index: list[str],
    pin: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def output(*command: str | Path) -> str:
        builds = index if "--extra-index-url" in command else configured
        return listing(*builds) if builds else ""

    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(environment, "output", output)
    monkeypatch.setattr("scripts.environment.sys.platform", "linux")
    requirement, *options = environment.torch_arguments(PYTHON, pin)
    assert requirement == expected
    taken_from_index = expected.removeprefix("torch==") in index and expected.endswith("+cpu")
    assert ("--extra-index-url" in options) == taken_from_index


@pytest.mark.parametrize(("gpu", "system"), [(True, "linux"), (False, "darwin")])
def test_elsewhere_the_usual_build_is_the_right_one(
    gpu: bool, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(environment, "output", lambda *_: listing("2.13.0+cpu"))
    monkeypatch.setattr("scripts.environment.sys.platform", system)
    assert environment.torch_arguments(PYTHON, "") == ["torch>=2.1"]


@pytest.mark.fairseq
@pytest.mark.parametrize("flavour", ["fixed", "upstream"])
def test_what_fairseqs_tokenizers_and_bpes_import_is_installed(flavour: str) -> None:
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
    runtime = (ROOT / "requirements" / flavour / "runtime.txt").read_text().splitlines()
    own = metadata.requires("deltasam_fairseq") or ()
    wanted = [*runtime, *(name for name in own if not re.search(r"extra == .transformers", name))]
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


@pytest.mark.parametrize("flavour", ["fixed", "upstream"])
def test_torch_is_there_when_fairseq_is_compiled_only_where_it_may_be(
    flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []
    monkeypatch.setattr(
        environment, "run", lambda *command: commands.append(" ".join(map(str, command)))
    )
    monkeypatch.setattr(environment, "torch_arguments", lambda *_: ["torch==1"])
    environment.build(PYTHON, flavour, "")
    steps = ("build.txt", "runtime.txt", "fairseq.txt", "torch==1", "--editable")
    order = [next(i for i, c in enumerate(commands) if step in c) for step in steps]
    build, runtime, fairseq, torch, package = order
    assert build < runtime < fairseq < package
    assert torch < fairseq if flavour == "fixed" else fairseq < torch < package
    # No second torch to build against, and no torchaudio.
    assert "--no-build-isolation --no-deps" in commands[fairseq]
    # What is installed later leaves the versions that fairseq was built with alone.
    assert all("-c" in commands[step].split() for step in (runtime, package))


def test_an_unsupported_python_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.environment.sys.version_info", (3, 14, 0))
    with pytest.raises(SystemExit, match=r"Python 3\.10 or 3\.11 or 3\.12 or 3\.13, this is"):
        environment.check_machine("fixed")
    with pytest.raises(SystemExit, match="make PYTHON310="):
        environment.check_machine("upstream")


def test_what_is_missing_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scripts.environment.sys.version_info", (3, 11, 0))
    monkeypatch.setattr("scripts.environment.importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("scripts.environment.sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("scripts.environment.shutil.which", lambda _: None)
    with pytest.raises(SystemExit, match=r"apt-get install python3-venv python3-dev g\+\+"):
        environment.check_machine("fixed")


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="is no virtual environment"):
        environment.create(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(("version", "clears"), [("3.0.1", True), (None, False)])
def test_an_environment_of_another_python_starts_over(
    version: str | None, clears: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyvenv.cfg").touch()
    made: list[tuple[str | Path, ...]] = []
    monkeypatch.setattr(environment, "run", lambda *command: made.append(command))
    own = platform.python_version()
    monkeypatch.setattr(environment, "output", lambda *_: f"Python {version or own}\n")
    environment.create(tmp_path)
    assert ("--clear" in made[0]) == clears


def test_a_second_run_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    builds: list[Any] = []
    for name in ("check_machine", "create"):
        monkeypatch.setattr(environment, name, lambda *_: None)
    monkeypatch.setattr(environment, "build", lambda *arguments: builds.append(arguments))
    assert environment.main([str(tmp_path)]) == 0
    assert environment.main([str(tmp_path)]) == 0
    assert len(builds) == 1
    assert environment.main([str(tmp_path), "--torch", "2.4.1"]) == 0
    assert len(builds) == 2


def test_a_failed_build_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("check_machine", "create"):
        monkeypatch.setattr(environment, name, lambda *_: None)
    (tmp_path / environment.STAMP).write_text("of another time")
    with pytest.raises(SystemExit, match="failed with status 2: .*no-such-file"):
        monkeypatch.setattr(
            environment, "build", lambda *_: environment.run(sys.executable, "no-such-file")
        )
        environment.main([str(tmp_path)])
    assert not (tmp_path / environment.STAMP).exists()


def test_a_program_that_is_not_there_has_no_output() -> None:
    assert environment.output("no-such-program") == ""
    assert environment.output(sys.executable, "no-such-file") == ""
