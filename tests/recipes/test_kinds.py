"""A kind of data that the package does not have: one file, and every verb takes it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.data import pipeline
from deltasam_fairseq.data.encoder import ARCHITECTURES, PreparedEncoder
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.data.pipeline import make_corpus
from deltasam_fairseq.data.prepared import PreparedCorpus, PreparedData
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import file_sha256, write_lines
from deltasam_fairseq.recipes import catalogue
from deltasam_fairseq.recipes.base import Model, Recipe
from deltasam_fairseq.recipes.checks_before_training import check_data
from deltasam_fairseq.recipes.default_folders import data_folder
from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions
from deltasam_fairseq.recipes.kinds.encoders import EncoderKind
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.registry import Registry
from deltasam_fairseq.settings import setting


class PreparedViews(PreparedCorpus):
    holds = "sentences to embed"

    @classmethod
    def _unfinished(cls, path: Path) -> str:
        return f"{path} holds no sentences to embed"

    def _require_whole(self) -> None:
        if self.facts["kind"] != "views":
            raise UserError(f"{self.path} was made for {self.facts['kind']}")


@dataclass(frozen=True)
class ViewOptions:
    """Copy sentences."""

    lines: Path = setting("one sentence per line", metavar="FILE")
    model: str = setting("whose vocabulary")


class Views(EncoderKind[PreparedViews]):
    corpus = PreparedViews
    holds = "sentences to embed"
    prepare_settings: ClassVar[tuple[type, ...]] = (ViewOptions,)

    def prepare(self, recipe: Recipe, options: ViewOptions) -> None:
        def build(data: PreparedViews) -> str:
            lines = options.lines.read_text().splitlines()
            write_lines(data.raw("train", "input0"), lines)
            data.facts["sha256"] = file_sha256(data.raw("train", "input0"))
            return f"{len(lines)} sentences"

        wanted = {
            "kind": "views",
            "inputs": {"lines": file_sha256(options.lines)},
            "settings": {"dict.txt": "d"},
        }
        make_corpus(data_folder(recipe.name, options.model), PreparedViews, wanted, build)

    def evaluate(self, recipe: Recipe, run: RunFolder, options: EvaluationOptions) -> Evaluation:
        data = self.load_trained(run, options.data)
        return Evaluation("test", (f"average of {len(data.texts('train', 'input0'))}: 77.70",))


RECIPE = Recipe(
    "my/views",
    1,
    "sentences to embed",
    "deltasam prepare my/views --lines FILE --model tiny",
    {"task": "views"},
    kind=Views(),
    models={"tiny": Model("a RoBERTa", {"arch": "roberta_base"})},
)


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltasam_fairseq.cli import prepare

    registry: Registry[Recipe] = Registry("recipe")
    registry.register(RECIPE.name, description=RECIPE.description)(RECIPE)
    for module in (catalogue, prepare):
        monkeypatch.setattr(module, "RECIPES", registry)
    monkeypatch.setattr(pipeline, "require_fairseq", lambda: None)
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("one\ntwo\n")


def encoder() -> PreparedEncoder:
    folder = Path("models", "tiny")
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"1234")
    facts: dict[str, Any] = {
        **{"family": "roberta", "bytes": 4, "dict_sha256": "d"},
        **{"sizes": ARCHITECTURES["roberta_base"], "head": {"tasks": [], "classes": []}},
    }
    (folder / PreparedEncoder.MARKER).write_text(json.dumps(facts))
    return PreparedEncoder.load(folder)


def test_prepared_trained_and_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("prepare my/views --lines lines.txt --model tiny".split()) == 0
    assert "data/my/views/tiny: finished; 2 sentences" in capsys.readouterr().out
    encoder()
    assert main("train my/views --model tiny --method sam --seed 2 --dry-run".split()) == 0
    command = capsys.readouterr().out
    assert " data/my/views/tiny/bin " in command
    assert "--restore-file models/tiny/model.pt" in command
    assert command.endswith("--save-dir runs/my/views/tiny/sam-seed2/checkpoints\n")
    data = PreparedViews.load(Path("data/my/views/tiny"))
    record = {"recipe": RECIPE.name, "data": str(data.path), "data_sha256": data.sha256}
    run = RunFolder(Path("run"))
    run.write_record(record)
    assert main(["evaluate", "run"]) == 0
    assert capsys.readouterr().out == "average of 2: 77.70\n"
    assert main(["evaluate", "run", "--nbest", "2"]) == 2
    run.write_record({**record, "data_sha256": "another"})
    assert main(["evaluate", "run"]) == 2
    assert "its content has changed" in capsys.readouterr().err


def test_each_kind_refuses_the_folders_of_the_others() -> None:
    assert main("prepare my/views --lines lines.txt --model tiny".split()) == 0
    folder = Path("data/my/views/tiny")
    for kind in (PreparedData, PreparedSentences):
        with pytest.raises(UserError, match="was made for views, not for"):
            kind.load(folder)
    with pytest.raises(UserError, match="holds texts to generate, the recipe my/views is for sent"):
        check_data(RECIPE, PreparedData(folder, {}))
    (folder / PreparedData.MARKER).write_text(json.dumps({"kind": "text"}))
    with pytest.raises(UserError, match="was made for text"):
        PreparedViews.load(folder)
