import platform
import re
import subprocess
from pathlib import Path

import pytest

import deltasam_fairseq
from deltasam_fairseq import __version__
from deltasam_fairseq.recipes.environment_record import commit, hardware, load, processor, versions


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    (tmp_path / "code.py").write_text("1\n")
    git("init", "-q")
    git("add", "code.py")
    git("commit", "-q", "-m", "first")
    return tmp_path


def test_the_commit_and_whether_it_was_changed(checkout: Path) -> None:
    clean = commit(checkout)
    assert clean is not None
    assert len(clean) == 40
    (checkout / "code.py").write_text("2\n")
    assert commit(checkout) == f"{clean}+changes"


def test_a_new_file_of_the_folder_is_a_change_and_one_beside_it_is_none(checkout: Path) -> None:
    package = checkout / "package"
    package.mkdir()
    (package / "code.py").write_text("1\n")
    for arguments in (["add", "package"], ["commit", "-q", "-m", "second"]):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(checkout), *identity, *arguments], check=True)
    (checkout / "notes.txt").write_text("\n")
    clean = commit(package)
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (package / "new.py").write_text("\n")
    assert commit(package) == f"{clean}+changes"


def test_without_a_folder_it_is_the_commit_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40,64}(\+changes)?", found)
    monkeypatch.setattr(deltasam_fairseq, "__file__", str(tmp_path / "__init__.py"))
    assert commit() is None


def test_no_commit_for_files_that_git_does_not_track(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    (installed / "code.py").write_text("")
    assert commit(installed) is None


def test_no_commit_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) is None


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["deltasam_fairseq"] == __version__
    assert "rouge-score" in found


def test_hardware_without_the_files_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise FileNotFoundError

    assert hardware()["cores"] >= 1
    monkeypatch.setattr(Path, "read_text", refuse)
    assert processor()


NUMBERS = "cpu family\t: 23\nmodel\t\t: 1\nstepping\t: 2\n"
NAME = "model name\t: AMD EPYC\n"


@pytest.mark.parametrize(
    ("core", "name"),
    [
        (NUMBERS + NAME, "AMD EPYC (family 23, model 1, stepping 2)"),
        (NAME, "AMD EPYC"),
        (NUMBERS, "abacus (family 23, model 1, stepping 2)"),
        ("", "abacus"),
        (NUMBERS + NAME + "\nmodel name: another", "AMD EPYC (family 23, model 1, stepping 2)"),
    ],
)
def test_processors_of_one_name_are_told_apart(
    core: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: core)
    monkeypatch.setattr(platform, "processor", lambda: "abacus")
    assert processor() == name


@pytest.mark.parametrize(("text", "threads"), [("3", 3), ("", None), ("4,2", None)])
def test_threads_are_those_that_the_environment_names(
    text: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert hardware()["threads"] == threads


def test_the_load_is_a_number() -> None:
    assert (load() or 0.0) >= 0
