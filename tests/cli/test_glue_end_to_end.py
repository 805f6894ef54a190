"""From tables to Table 1 with a tiny BERT, through the commands that a user types."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.recipes.run_folder import RunFolder
from tests.support.encoder_toys import SIZE_FLAGS, write_bert, write_tables

pytestmark = [pytest.mark.fairseq, pytest.mark.slow]

SHORT = [*SIZE_FLAGS, "--max-epoch", "1", "--batch-size", "8", "--log-interval", "1"]
SHORT += ["--total-num-update", "3", "--warmup-updates", "1"]
MODEL = ("--model", "minilm_l6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    place = tmp_path_factory.mktemp("glue")
    write_bert(place / "hf")
    write_tables(place / "tables")
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main(["prepare", "encoder", "hf", "--out", "models/minilm_l6"]) == 0
        arguments = ["prepare", "glue/rte", "--glue", "tables", *MODEL, "--max-tokens", "10"]
        assert main([*arguments, "--workers", "1"]) == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def records(sweep: str) -> dict[str, Any]:
    paths = Path(sweep, "records").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in paths}


def test_prepared_data_is_said_to_differ_from_the_official(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", "glue/rte", "--glue", "tables/RTE", *MODEL, "--out", "strict"]
    assert main([*arguments, "--strict-counts"]) == 2
    assert "24 rows, the official RTE has 2,490" in capsys.readouterr().err
    facts = json.loads(Path("data/glue/rte/minilm_l6/prepared.json").read_text())
    assert facts["rows"] == {"train": 24, "valid": 8, "test": 3}
    labels = Path("data/glue/rte/minilm_l6/bin/label/dict.txt").read_text().split()
    assert labels[::2] == ["not_entailment", "entailment"]


def test_train_evaluate_and_look_into_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "glue/rte", *MODEL, "--method", "random", "--seed", "2"]
    assert main([*arguments, *SHORT]) == 0
    run = RunFolder(Path("runs/glue/rte/minilm_l6/random-seed2"))
    record = run.record()
    assert (record["method"], record["model"]) == ("random", "minilm_l6")
    command = record["starts"][0]["command"]
    assert command[command.index("--sam-estimator") + 1] == "random"
    assert command[command.index("--sam-method") + 1] == "delta_sam"
    assert main(["evaluate", str(run.path)]) == 0
    scores = json.loads((run.predictions("valid") / "scores.json").read_text())
    assert scores["n"] == 8
    predicted = (run.predictions("valid") / "predictions.txt").read_text().split()
    gold = Path("data/glue/rte/minilm_l6/raw/valid.label").read_text().split()
    assert scores["accuracy"] == 100 * sum(p == g for p, g in zip(predicted, gold, strict=True)) / 8
    log = run.log.read_text()
    assert f'"valid_accuracy": "{scores["accuracy"]:g}"' in log
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--split", "test"]) == 2
    assert "3 predictions for RTE, whose test set has 3000" in capsys.readouterr().err
    assert main(["analyse", "adversarial-risk", str(run.path), "--rho", "0.1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("adversarial risk ")
    found = json.loads((run.predictions("valid") / "adversarial_risk.json").read_text())
    assert (found["n"], found["rho"]) == (8, 0.1)
    assert found["risk"] > found["loss"] > 0
    hard = ["analyse", "hard-sentences", str(run.path), "--split", "valid", "--by", "loss"]
    assert main([*hard, "--top", "2", "--json", "hard.json"]) == 0
    first, second = json.loads(Path("hard.json").read_text())
    assert first["loss"] >= second["loss"] > 0
    assert first["answer"] == gold[first["number"] - 1]
    assert first["prediction"] == predicted[first["number"] - 1]
    shown = capsys.readouterr().out
    assert f"  label: {first['answer']}, predicted: {first['prediction']}\n" in shown
    assert f"  {first['texts'][1]}\n" in shown
    assert main([*hard[:-2], "--split", "test"]) == 2
    assert "test has no labels, only sentences" in capsys.readouterr().err
    assert main(["export", str(run.path), "--out", "exported"]) == 0
    config = json.loads(Path("exported/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "not_entailment", "1": "entailment"}
    assert json.loads(Path("exported/tokenizer_config.json").read_text())["model_max_length"] == 10


SWEEP = ["sweep", "glue/rte", *MODEL, "--methods", "none,sam", "--seeds", "1"]


def test_a_sweep_fills_the_tables_and_skips_what_is_finished(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*SWEEP, "--grid", "rho=0.01,0.05", "--adversarial-risk", "0.05", *SHORT]
    assert main([*SWEEP, "--list"]) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["none-seed1", "not", "run"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("3 runs: 3 finished")
    found = records("sweeps/glue/rte/minilm_l6")
    assert sorted(found) == ["none-seed1", "sam-rho0.01-seed1", "sam-rho0.05-seed1"]
    one = found["sam-rho0.05-seed1"]
    assert one["flags"]["sam-rho"] == "0.05"
    assert one["updates"] == 3
    assert set(one["seconds"]) == {*("train", "train_processor", "evaluate", "adversarial_risk")}
    assert one["adversarial_risk"]["n"] == one["n"] == 8
    assert {"versions", "hardware", "commit", "checkpoint_sha256"} <= set(one)
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("3 runs: 3 finished before")
    assert main(["table", "1", "--format", "markdown", "--plot", "costs.png"]) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("| minilm_l6, sam"))
    assert "(n=1)" in row
    assert "not run" in row
    assert Path("costs.png").read_bytes().startswith(b"\x89PNG")
    assert main(["table", "4", "--format", "csv"]) == 0
    assert "split valid" in capsys.readouterr().out


def test_rivals_and_sums_are_trained_and_have_their_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["sweep", "glue/rte", *MODEL, "--methods", "rdrop,r3f+sam,smart", "--seeds", "1"]
    arguments += ["--grid", "r3f-lambda=5", "--out", "rivals", *SHORT]
    assert main(arguments) == 0
    found = records("rivals")
    assert sorted(found) == ["rdrop-seed1", "sam+r3f-r3f-lambda5-seed1", "smart-seed1"]
    summed = found["sam+r3f-r3f-lambda5-seed1"]
    assert summed["method"] == "sam+r3f"
    assert summed["flags"]["regularizer-weight"] == "5"
    capsys.readouterr()
    assert main(["table", "1", "--sweeps", "rivals"]) == 0
    shown = capsys.readouterr().out
    for method in ("rdrop", "smart", "sam+r3f"):
        assert f"minilm_l6, {method} " in shown
    assert main(["table", "grid", "--sweeps", "rivals"]) == 0
    assert "rho 0.05, r3f-lambda 5" in capsys.readouterr().out


def test_the_kept_records_give_the_tables_of_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SWEEP, "--out", "kept_from", "--seeds", "1-2"]
    assert main([*arguments, *SHORT]) == 0
    assert main([*arguments, "--export", "kept"]) == 0
    assert sorted(records("kept/glue/rte/minilm_l6")) == sorted(records("kept_from"))
    capsys.readouterr()
    for table in (["1", "--statistics"], ["6"], ["significance"]):
        printed = []
        for sweeps in ("kept_from", "kept"):
            assert main(["table", *table, "--format", "csv", "--sweeps", sweeps]) == 0
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1]
        assert "n=2" in printed[0] or ",2," in printed[0]


def test_a_sweep_of_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SWEEP, "--out", "other", "--methods", "none", *SHORT]
    assert main(arguments) == 0
    assert main([*arguments, "--lr", "0.5"]) == 2
    assert "is a sweep with overrides" in capsys.readouterr().err


def test_a_failing_run_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SWEEP, "--out", "failing", "--grid", "dropout=0.1,none", "--methods", "none"]
    assert main([*arguments, *SHORT]) == 1
    out = capsys.readouterr().out
    assert "none-dropoutnone-seed1: failed: fairseq-train ended with status" in out
    assert out.splitlines()[-1].endswith("1 finished, 1 failed")
    assert list(records("failing")) == ["none-dropout0.1-seed1"]


def test_a_killed_sweep_goes_on_and_two_at_once_share_the_runs() -> None:
    arguments = [*SWEEP, "--out", "killed", "--seeds", "1-2", *SHORT]
    command = [sys.executable, "-m", "deltasam_fairseq.cli", *arguments]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not Path("killed/cells/none-seed1/train.log").exists():
        assert first.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = len(records("killed"))
    assert before < 4
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(records("killed")) == 4
    assert sum(output.count(": begins") for output in outputs) == 4 - before
