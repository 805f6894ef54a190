"""docs/glue.md says what the code does: its recipe loads, prepares and trains."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import VERBS, main
from deltasam_fairseq.recipes import catalogue
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.methods import PARTS
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.registry import Registry
from tests.support.encoder_toys import SIZE_FLAGS, write_bert

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "glue.md").read_text()
MODEL = ["--model", "minilm_l6"]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry[Recipe]]:
    """Give the test a registry of its own, a folder of its own, and the page's recipe."""
    for name in [name for name in RECIPES.names() if name.startswith("my/")]:
        del RECIPES._entries[name]
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"<!-- recipe -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    Path("recipes.py").write_text(code)
    yield RECIPES
    for name in [name for name in RECIPES.names() if name.startswith("my/")]:
        del RECIPES._entries[name]
        del RECIPES._descriptions[name]


def write_reviews(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, count in (("train", 16), ("dev", 6)):
        rows = [("The cat sat .", "good"), ("No dog ran .", "bad")] * (count // 2)
        lines = ["review\tlabel", *("\t".join(row) for row in rows)]
        (folder / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines))


def test_the_recipe_is_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--recipe-file", "recipes.py"]) == 0
    assert "my/reviews" in capsys.readouterr().out
    assert main(["recipes", "my/reviews", "--recipe-file", "recipes.py"]) == 0
    shown = capsys.readouterr().out
    assert "with --model minilm_l6 --method delta_sam:\n  --sam-rho 0.05" in shown
    command = ["train", "my/reviews", "--recipe-file", "recipes.py", *MODEL, "--dry-run"]
    assert main(command) == 0
    assert "--arch deltasam_bert_minilm_l6" in capsys.readouterr().out


@pytest.mark.fairseq
@pytest.mark.slow
def test_the_recipe_prepares_trains_and_is_remembered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tokenizers")
    write_bert(Path("hf"))
    write_reviews(Path("tables/reviews"))
    assert main(["prepare", "encoder", "hf", "--out", "models/minilm_l6"]) == 0
    file = ["--recipe-file", "recipes.py"]
    assert main(["prepare", "my/reviews", *file, "--tables", "tables", *MODEL]) == 0
    short = [*SIZE_FLAGS, "--max-epoch", "1", "--cpu", "--log-interval", "1", "--num-workers", "0"]
    arguments = ["train", "my/reviews", *file, *MODEL, "--method", "delta_sam", *short]
    assert main(arguments) == 0
    run = RunFolder(Path("runs/my/reviews/minilm_l6/delta_sam-seed1"))
    assert run.record()["recipe_file"].endswith("recipes.py")
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--cpu"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_what_the_page_names_exists() -> None:
    assert catalogue.ENTRY_POINTS in PAGE
    for block in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("deltasam "):
                assert shlex.split(line)[1] in VERBS
    for method in PARTS:
        assert f"`{method}`" in PAGE
    for model in RECIPES.get("glue/rte").models:
        assert f"`{model}`" in PAGE
