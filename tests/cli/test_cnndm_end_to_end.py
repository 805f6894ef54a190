"""From real articles to the table with a small BART, through fairseq's own programs."""

import json
from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import main

pytestmark = pytest.mark.fairseq


@pytest.mark.usefixtures("warm_programs")
def test_articles_to_table(
    tmp_path: Path, data_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for side in ("source", "target"):
        lines = (data_folder / "cnndm" / f"validation1000.{side}").read_text().split("\n")
        (tmp_path / side).write_text("".join(f"{line}\n" for line in lines[:30]))
    folder = data_folder / "gpt2_bpe"
    words = ["--encoder-json", str(folder / "encoder.json")]
    words += ["--dict", str(folder / "dict.bart_roberta_50260.txt")]
    data, bart, run = (str(tmp_path / name) for name in ("data", "bart", "run"))
    prepare = ["prepare", "cnndm", "--train-source", str(tmp_path / "source"), "--out", data]
    prepare += ["--train-target", str(tmp_path / "target"), "--hold-out", "4", "--workers", "1"]
    assert main([*prepare, *words, "--vocab-bpe", str(folder / "vocab.bpe")]) == 0
    assert main(["prepare", "bart", "--random", "small", *words, "--out", bart]) == 0
    train = ["train", "cnndm-small", "--data", data, "--save-dir", run, "--method", "r3f+sam"]
    assert main([*train, "--bart", bart, "--max-update", "1"]) == 0
    assert main([*train, "--resume", "--max-update", "2"]) == 0
    short = ["--max-len-b", "8", "--min-len", "4", "--batch-size", "2"]
    assert main(["evaluate", run, "--processes", "2", *short]) == 0
    capfd.readouterr()
    assert main(["table", "3", run]) == 0

    shown = capfd.readouterr().out
    (ours,) = [line for line in shown.splitlines() if line.startswith("ours: sam+r3f")]
    assert "not run" not in ours
    assert "NOT COMPARABLE" in shown
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"Loaded checkpoint {bart}/model.pt" in log
    assert "Loaded checkpoint run" not in log
    assert f"Loaded checkpoint {run}/checkpoints/checkpoint_last.pt (epoch" in log
    assert log.count(f"Loaded checkpoint {bart}/model.pt") == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["bart"]["kind"] == "random"
    results = tmp_path / "run" / "generate-test"
    assert len((results / "hypotheses.txt").read_text().split("\n")) == 5
    assert {path.name for path in results.glob("*.log")} == {
        "generate-1-of-2.log",
        "generate-2-of-2.log",
    }
    scores = json.loads((results / "scores.json").read_text())
    assert "like:rouge-1.5.5" in scores["signature"]
