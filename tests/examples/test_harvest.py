from pathlib import Path

import pytest

from examples.docstrings.harvest import (
    Documented,
    harvest,
    package_folders,
    python_files,
    read_module,
)

MODULE = '''
raise RuntimeError("parsed, never imported")

def plain(a, /, b=1, *rest, c, **others):
    """Plain."""

class Tree(Base, metaclass=Meta):
    """Tree."""

    async def grow(self, speed):
        """Grow."""

    @classmethod
    def make(cls):
        """Make."""

    def silent(self):
        pass
'''


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_read_module_collects_signatures_without_importing(tmp_path: Path) -> None:
    assert read_module("m", write(tmp_path / "m.py", MODULE)) == [
        Documented("m", "plain", ("a", "b", "c", "*rest", "**others"), False, "Plain."),
        Documented("m", "Tree", ("Base",), True, "Tree."),
        Documented("m", "Tree.grow", ("speed",), False, "Grow."),
        Documented("m", "Tree.make", (), False, "Make."),
    ]


@pytest.mark.parametrize(
    "content", [b"def f(:\n", b'"""\xff"""\n', b"x = 1\0\n"], ids=["syntax", "encoding", "null"]
)
def test_read_module_skips_what_it_cannot_parse(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(content)
    assert read_module("bad", path) == []


def test_python_files_leaves_tests_copies_and_this_project_out(tmp_path: Path) -> None:
    kept = ["pkg/__init__.py", "pkg/sub/mod.py", "single.py"]
    skipped = [
        "pkg/tests/test_a.py",
        "pkg/test_b.py",
        "pip/_vendor/pkg.py",
        "deltasam_fairseq/a.py",
        "pkg-1.0.data/c.py",
    ]
    for name in kept + skipped:
        write(tmp_path / name, "")
    assert [module for module, _ in python_files([tmp_path])] == ["pkg", "pkg.sub.mod", "single"]


def test_an_earlier_folder_hides_a_later_one(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1/a.py", ""), write(tmp_path / "2/a.py", "")
    assert python_files([tmp_path / "1", tmp_path / "2"]) == [("a", first)]
    assert python_files([tmp_path / "2", tmp_path / "1"]) == [("a", second)]


def test_harvest_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    for index in range(70):  # more than two chunks
        write(tmp_path / f"m{index}.py", f'def f{index}():\n    """Text {index}."""\n')
    files = python_files([tmp_path])
    one, two = (list(harvest(files, workers=workers)) for workers in (1, 2))
    assert one == two
    assert [found[0].module for found in one] == [module for module, _ in files]


def test_package_folders_are_those_of_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    search = [str(tmp_path), str(site), str(site), str(tmp_path / "absent/site-packages")]
    monkeypatch.setattr("sys.path", search)
    assert package_folders() == [site]
