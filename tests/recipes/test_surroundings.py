import subprocess
from pathlib import Path

import pytest

from deltasam_fairseq import __version__
from deltasam_fairseq.recipes.surroundings import commit, hardware, versions


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
    assert isinstance(hardware()["cpu"], str)
