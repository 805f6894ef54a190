"""The example's corpus as files, and its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltasam_fairseq.data.aligned import read_aligned
from deltasam_fairseq.recipes.catalogue import RECIPES, load_file
from examples.docstrings import prepare

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write eight packages of six documented functions, and make them the installed ones."""
    site = tmp_path / "site-packages"
    for package in range(8):
        (site / f"p{package}").mkdir(parents=True)
        for function in range(6):
            word = f"{'abcdefgh'[package]}{'uvwxyz'[function]}"
            text = " ".join(f"{word}{letter * 3}" for letter in "klmnopqrst")
            body = f'"""Do {text} now.\n\n    Not {text[::-1]} but then."""'
            (site / f"p{package}" / f"m{function}.py").write_text(f"def f():\n    {body}\n")
    monkeypatch.setattr(prepare, "package_folders", lambda: [site])
    return site


def few(out: Path) -> list[str]:
    small = "--min-train 10 --workers 1 --valid-pairs 12 --test-pairs 12"
    return ["--out", str(out), *small.split()]


def test_the_files_are_what_prepare_text_takes(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "text"
    prepare.main(few(out))
    summary = json.loads((out / "corpus.json").read_text())
    assert summary["pairs"] == {"test": 12, "train": 24, "valid": 12}
    assert summary["packages"]["p0"]["version"] is None
    for name, count in summary["pairs"].items():
        pairs = read_aligned(out / f"{name}.source", out / f"{name}.target")
        # Reading changes nothing: the files hold the corpus as it was built.
        assert (out / f"{name}.source").read_text().splitlines() == pairs.sources
        assert (out / f"{name}.target").read_text().splitlines() == pairs.targets
        assert len(pairs) == count
    assert [path for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_a_finished_corpus_stays_and_changed_packages_are_noted(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "text"
    prepare.main(few(out))
    summary = json.loads((out / "corpus.json").read_text())
    summary["packages"]["p0"]["version"] = "0.9"
    (out / "corpus.json").write_text(json.dumps(summary))
    (site / "p0" / "m0.py").unlink()
    capsys.readouterr()
    prepare.main(few(out))
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "note: 1 of its packages have another version now (p0 0.9 → not installed)" in said
    assert len((out / "train.source").read_text().splitlines()) == 24
    prepare.main([*few(out), "--force"])
    assert sum(json.loads((out / "corpus.json").read_text())["pairs"].values()) == 47


def test_another_corpus_or_folder_is_left_alone(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    prepare.main(few(tmp_path / "text"))
    for arguments, message in (
        (few(tmp_path / "theirs"), "exists and is no corpus"),
        ([*few(tmp_path / "text"), "--max-source-words", "9"], "was made with other settings"),
        ([*few(tmp_path / "new"), "--min-train", "0"], "'0' is not a whole number"),
        ([*few(tmp_path / "new"), "--min-train", "99"], "at least 99 training pairs"),
    ):
        with pytest.raises(SystemExit) as stopped:
            prepare.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_its_recipe_is_like_anyones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RECIPES, "_entries", dict(RECIPES._entries))
    load_file(ROOT / "examples" / "docstrings" / "recipe.py")
    recipe = RECIPES.get("docstrings")
    assert (recipe.version, recipe.flags["max-update"], recipe.on_cpu) == (1, 1500, "")
    assert recipe.flags["required-batch-size-multiple"] == 1
