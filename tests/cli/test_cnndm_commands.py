import json
import shlex
from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import main
from tests.support.bart_toys import write_dictionary
from tests.support.prepared_data import finished_data, prepared_bart

FILES = ("encoder.json", "vocab.bpe", "dict.txt")


def message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_prepare_cnndm_wants_one_kind_of_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES:
        (tmp_path / name).write_text("{}")
    given = ["--gpt2", str(tmp_path), "--other-vocabulary", "--out", str(tmp_path / "d")]
    text = ["--train-source", "s", "--train-target", "t"]
    for inputs in ([], [*text, "--stories", "cnn"]):
        found = message(capsys, "prepare", "cnndm", *inputs, *given)
        assert "give either the stories, with --stories DIR" in found
    found = message(capsys, "prepare", "cnndm", "--train-source", "s", *given)
    assert "--train-source and --train-target belong together" in found


def test_prepare_cnndm_checks_the_vocabulary_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--train-source", "s", "--train-target", "t", "--out", str(tmp_path / "d")]
    found = message(capsys, "prepare", "cnndm", *text)
    assert "give encoder.json, with --encoder-json FILE or in the folder of --gpt2" in found
    for name in FILES:
        (tmp_path / name).write_text("{}")
    found = message(capsys, "prepare", "cnndm", *text, "--gpt2", str(tmp_path))
    assert "is not the encoder.json of GPT-2 and BART: it has 2 bytes" in found
    assert "--other-vocabulary" in found


def test_prepare_bart_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = str(write_dictionary(tmp_path / "dict.txt"))
    arguments = ["prepare", "bart", "--random", "small", "--dict", words]
    arguments += ["--out", str(tmp_path / "bart")]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "finished before from the same checkpoint" in capsys.readouterr().out
    facts = json.loads((tmp_path / "bart" / "bart.json").read_text())
    assert facts["source"] == "small, seed 1"
    missing = ["prepare", "bart", "nowhere.pt", "--dict", words, "--out", str(tmp_path / "b")]
    assert "nowhere.pt: no such file; give model.pt" in message(capsys, *missing)


def test_a_dry_run_of_cnndm_prints_one_whole_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = finished_data(tmp_path / "data", gpt2=True)
    bart = prepared_bart(tmp_path / "bart", "bart_large")
    arguments = ["train", "cnndm", "--data", str(data.path), "--save-dir", str(tmp_path / "run")]
    assert "give --bart DIR" in message(capsys, *arguments, "--dry-run")
    nowhere = ("--bart", str(tmp_path / "nowhere"))
    assert "make a checkpoint with" in message(capsys, *arguments, *nowhere)
    raw = ("--bart", str(bart.checkpoint))
    assert f"deltasam prepare bart {bart.checkpoint}" in message(capsys, *arguments, *raw)
    arguments += ["--bart", str(bart.path), "--gpus", "4", "--slurm", "--dry-run"]
    assert main([*arguments, "--method", "sam", "--precision", "bf16"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[0] == "srun"
    assert command[command.index("--update-freq") + 1] == "8"
    assert command[command.index("--adam-betas") + 1] == "(0.9, 0.999)"
    assert "--bf16" in command
    assert "--fp16" not in command
    assert not (tmp_path / "run").exists()


def test_published_figures_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--published", "cnndm", "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert main(["table", "3", "--format", "markdown"]) == 0
    assert capsys.readouterr().out == shown
    lines = shown.splitlines()
    assert "| 44.70 | 21.54 | 41.81 |" in lines[6]
    assert lines[9].startswith("| ours: delta_sam | not run | not run |")
    assert (
        "nothing to show: give runs, one of 1, 2, 3, 4, 6, grid, significance, or --published cnndm"
        in message(capsys, "table")
    )
