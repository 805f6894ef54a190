import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import checks_before_training, training
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.checks_before_training import check_data
from deltasam_fairseq.recipes.command import train_command
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.training import TrainRequest, train
from tests.support.prepared_data import finished_data, program

UPDATE = '| INFO | train_inner | {"epoch": 2, "loss": "4.5", "sam_ess": "3.1", "num_updates": "20"}'
VALID = '| INFO | valid | {"valid_loss": "5.5", "valid_num_updates": "20"}'


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return finished_data(tmp_path / "data")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def request(data: PreparedData, run: RunFolder, **wishes: Any) -> TrainRequest:
    return TrainRequest(replace(RECIPES.get("text"), on_cpu=""), data, run, **wishes)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace fairseq-train by a program that logs two lines and writes a checkpoint."""
    calls: list[dict[str, Any]] = []

    def command(recipe: Any, **arguments: Any) -> list[str]:
        calls.append(arguments)
        checkpoint = arguments["save_dir"] / "checkpoint_last.pt"
        statements = (
            "import pathlib",
            f"path = pathlib.Path({str(checkpoint)!r})",
            "path.parent.mkdir(parents=True, exist_ok=True); path.touch()",
            f"print({UPDATE!r}); print({VALID!r}); print('warning: noise')",
            f"raise SystemExit({int('--fail' in arguments['overrides'])})",
        )
        return [*program(*statements), "--max-update", "90"]

    monkeypatch.setattr(training, "train_command", command)
    monkeypatch.setattr(training, "require_fairseq", lambda: None)
    return calls


def test_a_run_leaves_a_record_a_log_and_short_progress(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    said: list[str] = []
    train(request(data, run), say=said.append)
    assert said[:2] == ["  update 20/90: loss 4.5, sam_ess 3.1", "valid: loss 5.5"]
    assert run.log.read_text().splitlines() == [UPDATE, VALID, "warning: noise"]
    record = run.record()
    assert record["finished"] is True
    assert (record["recipe"], record["method"], record["seed"]) == ("text", "delta_sam", 1)
    assert record["data_sha256"] == data.sha256
    assert {"python", "torch", "deltasam_fairseq"} <= set(record["versions"])
    assert record["hardware"]["cores"] >= 1
    (start,) = record["starts"]
    assert start["status"] == 0
    assert start["seconds"] >= 0
    assert start["processor_seconds"] > 0
    assert start["began"] <= start["ended"]


def test_a_limit_that_is_no_number_is_named_before_anything_is_written(
    data: PreparedData, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "require_fairseq", lambda: None)
    with pytest.raises(UserError, match="--max-update 10k: not a whole number"):
        train(request(data, run, overrides=["--max-update", "10k"]))
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("name", "model", "overrides", "gpus", "said"),
    [
        ("text", None, [], [], "examples/docstrings/recipe.py has a recipe"),
        (
            "text",
            None,
            ["--cpu"],
            ["H100"],
            "examples/docstrings/recipe.py has a recipe",
        ),
        ("text", None, [], ["H100"], None),
        ("text", None, ["--arch", "transformer"], [], None),
        ("text", None, ["--arch", "transformer", "--fp16"], [], ": half precision needs a GPU"),
        ("cnndm", None, [], [], "cnndm-small runs the same commands in minutes; half precision"),
        ("cnndm-small", None, [], [], None),
        ("glue/rte", "roberta_large", [], [], "--model minilm_l6 is small enough"),
        ("glue/rte", "bert_base_cased", [], [], "half precision needs a GPU: --precision fp32"),
        ("glue/rte", "bert_base_cased", [], ["H100"], None),
        ("glue/rte", "minilm_l6", [], [], None),
    ],
)
def test_a_recipe_for_a_gpu_says_so_on_a_cpu(
    name: str,
    model: str | None,
    overrides: list[str],
    gpus: list[str],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(checks_before_training, "gpus", lambda: gpus)
    recipe = RECIPES.get(name)
    recipe = recipe.with_model(model) if model else recipe
    folder = Path("d")
    command = train_command(
        recipe, data=folder, save_dir=folder, method="sam", seed=1, overrides=overrides
    )
    note = checks_before_training.cpu_note(recipe, command)
    assert bool(note) == (said is not None)
    assert (said or "") in note
    full = train_command(
        recipe, data=folder, save_dir=folder, method="sam", seed=1, precision="fp32"
    )
    assert "half precision" not in checks_before_training.cpu_note(recipe, full)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert bool(checks_before_training.cpu_note(recipe, full)) == bool(recipe.on_cpu)


def test_a_run_without_a_gpu_begins_with_the_note(
    data: PreparedData,
    run: RunFolder,
    commands: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks_before_training, "gpus", list)
    said: list[str] = []
    train(TrainRequest(RECIPES.get("text"), data, run), say=said.append)
    train(TrainRequest(RECIPES.get("text"), data, run), say=said.append, resume=True)
    notes = [line for line in said if line.startswith("note: text is sized for a GPU, and none")]
    assert said[0] == notes[0]
    assert len(notes) == 2


def test_a_second_run_needs_a_choice(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    train(request(data, run), say=lambda line: None)
    before = run.log.read_text()
    with pytest.raises(UserError, match="--resume to continue it, or --restart"):
        train(request(data, run), say=lambda line: None)
    assert len(commands) == 1
    assert run.log.read_text() == before


def test_resume_keeps_method_seed_and_flags_and_appends(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    first = request(data, run, method="sam", seed=5, overrides=["--lr", "0.1"])
    train(first, say=lambda line: None)
    again = request(data, run, overrides=["--max-update", "9"])
    train(again, resume=True, say=lambda line: None)
    assert commands[1]["method"] == "sam"
    assert commands[1]["seed"] == 5
    assert commands[1]["overrides"] == ["--lr", "0.1", "--max-update", "9"]
    assert run.log.read_text().splitlines().count(UPDATE) == 2
    assert len(run.record()["starts"]) == 2


def test_what_a_resumed_run_was_given_lasts(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    train(request(data, run, overrides=["--lr", "0.1"], gpus=2), say=lambda line: None)
    longer = request(data, run, overrides=["--max-update", "200"], gpus=4, precision="bf16")
    for again in (longer, request(data, run), longer):
        train(again, resume=True, say=lambda line: None)
    for found in commands[2:]:
        assert found["overrides"] == ["--lr", "0.1", "--max-update", "200"]
        assert (found["launch"].gpus, found["precision"]) == (4, "bf16")
    with pytest.raises(UserError, match="fairseq-train"):
        train(request(data, run, overrides=["--fail"]), resume=True, say=lambda line: None)
    assert "--fail" not in run.record()["overrides"]


def test_a_cell_that_is_resumed_with_its_own_flags_keeps_them_once(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    cell = request(data, run, overrides=["--lr", "0.1"])
    for resume in (False, True, True):
        train(cell, resume=resume, say=lambda line: None)
    assert [found["overrides"] for found in commands] == [["--lr", "0.1"]] * 3


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"method": "none"}, "with method sam, not none"),
        ({"seed": 2}, "with seed 1, not 2"),
    ],
)
def test_resume_refuses_to_become_another_run(
    data: PreparedData,
    run: RunFolder,
    commands: list[dict[str, Any]],
    wishes: dict[str, Any],
    message: str,
) -> None:
    train(request(data, run, method="sam"), say=lambda line: None)
    with pytest.raises(UserError, match=message):
        train(request(data, run, **wishes), resume=True, say=lambda line: None)
    assert len(commands) == 1


def test_resume_refuses_other_data(
    tmp_path: Path, data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    train(request(data, run), say=lambda line: None)
    other = finished_data(tmp_path / "other", sha256="e" * 64)
    with pytest.raises(UserError, match="with data_sha256 ddd.*, not eee"):
        train(request(other, run), resume=True, say=lambda line: None)


def test_restart_keeps_the_old_run_under_a_dated_name(
    tmp_path: Path, data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    train(request(data, run, method="sam"), say=lambda line: None)
    said: list[str] = []
    train(request(data, run), restart=True, say=said.append)
    (old,) = tmp_path.glob("run.2*")
    assert said[0] == f"the earlier run is now {old}"
    assert json.loads((old / "run.json").read_text())["method"] == "sam"
    assert run.record()["method"] == "delta_sam"


def test_a_failed_run_quotes_the_log_and_is_not_finished(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match="(?s)fairseq-train ended with status 1.*warning: noise"):
        train(request(data, run, overrides=["--fail"]), say=lambda line: None)
    record = run.record()
    assert record["finished"] is False
    assert record["starts"][0]["status"] == 1


def test_ctrl_c_leaves_a_record_of_the_time_and_no_program(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(request(data, run), say=interrupt)
    record = run.record()
    assert record["finished"] is False
    (start,) = record["starts"]
    assert start["status"] is None
    assert start["ended"] >= start["began"]
    assert start["seconds"] >= 0
    assert start["processor_seconds"] > 0  # it was waited for
    train(request(data, run), resume=True, say=lambda line: None)
    assert run.record()["finished"] is True


def test_resume_needs_a_last_checkpoint(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    train(request(data, run), say=lambda line: None)
    (run.checkpoints / "checkpoint_last.pt").rename(run.best_checkpoint)
    with pytest.raises(UserError, match=r"no checkpoint_last\.pt, .*random weights .*--restart"):
        train(request(data, run), resume=True, say=lambda line: None)
    assert len(run.record()["starts"]) == 1


def test_resume_refuses_another_version_of_the_recipe(
    data: PreparedData, run: RunFolder, commands: list[dict[str, Any]]
) -> None:
    train(request(data, run), say=lambda line: None)
    other = replace(RECIPES.get("text"), version=99)
    with pytest.raises(UserError, match="with recipe_version 1, not 99"):
        train(TrainRequest(other, data, run), resume=True, say=lambda line: None)


def test_data_of_another_kind_or_task_are_refused(
    tmp_path: Path, data: PreparedData, run: RunFolder
) -> None:
    sentences = PreparedSentences(tmp_path, {"task": "RTE"})
    with pytest.raises(UserError, match="holds RTE, the recipe text is for texts to gen"):
        TrainRequest(RECIPES.get("text"), sentences, run).command()
    check_data(RECIPES.get("glue/rte"), sentences)
    with pytest.raises(UserError, match="holds RTE, the recipe glue/mrpc is for MRPC"):
        check_data(RECIPES.get("glue/mrpc"), sentences)
    with pytest.raises(UserError, match="holds texts to generate, the recipe glue/mrpc is for"):
        check_data(RECIPES.get("glue/mrpc"), data)
