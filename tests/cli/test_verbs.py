import json
import shlex
from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.recipes.catalogue import find_recipe
from deltasam_fairseq.recipes.run_folder import RunFolder
from tests.support.prepared_data import finished_data


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_recipes_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    header, _, *listed = capsys.readouterr().out.splitlines()
    assert header.split() == ["recipe", "metric", "what", "it", "is", "models"]
    names = [line.split()[0] for line in listed]
    assert {"cnndm", "cnndm-small", "text", "glue/rte", "glue/sts-b"} <= set(names)
    assert names == sorted(names)
    assert main(["recipes", "text"]) == 0
    shown = capsys.readouterr().out
    assert "deltasam train text --data DIR" in shown
    assert "  --share-all-embeddings\n" in shown
    assert "  --adam-betas '(0.9, 0.98)'\n" in shown


def test_recipes_shows_the_model_that_was_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (arch, published) in {
        "roberta_large": ("roberta_large", True),
        "bert_base_cased": ("deltasam_bert_base", True),
        "minilm_l6": ("deltasam_bert_minilm_l6", False),
    }.items():
        assert main(["recipes", "glue/rte", "--model", name]) == 0
        shown = capsys.readouterr().out
        assert shown.count("  --arch ") == shown.count(f"  --arch {arch}\n") == 1
        assert f"deltasam train glue/rte --model {name} --method" in shown
        assert f"deltasam prepare glue/rte --glue DIR --model {name}\n" in shown
        assert (f"published for {name}: " in shown) == published
        assert shown.count("with --model ") == shown.count(f"with --model {name}: ") == 1
        # The command's flags, each once: those of the recipe with the model's in their place.
        model = find_recipe("glue/rte").with_model(name)
        flags = shown.partition("flags of fairseq-train:\n")[2].partition("\nat the first")[0]
        listed = [line.split()[0] for line in flags.splitlines()]
        assert listed == [f"--{flag}" for flag, value in model.flags.items() if value is not False]
        assert shown.count("--method sam:") == shown.count("--method per_instance:") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["glue/rte", "--model", "roberta"], "no model 'roberta'; did you mean 'roberta_base'?"),
        (["text", "--model", "roberta_base"], "the recipe text has no model 'roberta_base'"),
        (["--model", "roberta_base"], "--model roberta_base goes with a recipe"),
    ],
)
def test_recipes_complains_of_a_model_that_is_not_there(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_score_rouge_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hypotheses = write(tmp_path / "h", "a b c", "")
    references = write(tmp_path / "r", "a b c d", "x")
    assert main(["score", "rouge", hypotheses, references, "--json", "--no-stemmer"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rouge1"]["fmeasure"] == pytest.approx(100 * (6 / 7) / 2)
    assert found["n"] == 2
    assert "stemmer:no" in found["signature"]


def test_score_rouge_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "h", "one. two.")
    assert main(["score", "rouge", path, path, "--sentence-split", "sentences"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["rouge1", "100.00", "100.00", "100.00"]
    assert lines[-1].startswith("n = 1, rouge|tool:rouge-score|")
    assert "split:sentences" in lines[-1]


def test_score_names_both_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, three = write(tmp_path / "h", *"ab"), write(tmp_path / "r", *"abc")
    assert main(["score", "rouge", two, three]) == 2
    assert "2 hypotheses but 3 references" in capsys.readouterr().err


def test_a_dry_run_prints_the_command_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_data(tmp_path / "data")
    arguments = ["train", "text", "--data", str(tmp_path / "data")]
    arguments += ["--save-dir", str(tmp_path / "run"), "--method", "sam", "--seed", "3"]
    assert main([*arguments, "--lr", "0.5", "--dry-run", "--sam-rho=0.1", "--cpu"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[1:4] == ["-m", "fairseq_cli.train", str(tmp_path / "data" / "bin")]
    assert command[command.index("--lr") + 1] == "0.5"
    assert command[command.index("--sam-method") + 1] == "sam"
    assert command[command.index("--seed") + 1] == "3"
    assert command[-3:] == ["--sam-rho", "0.1", "--cpu"]
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_data_that_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = finished_data(tmp_path / "data")
    run = RunFolder(tmp_path / "run")
    run.write_record({"recipe": "text", "data": str(data.path), "data_sha256": "another"})
    assert main(["evaluate", str(run.path)]) == 2
    assert "is not what" in (message := capsys.readouterr().err)
    assert "--data" in message


@pytest.mark.parametrize("side", ["source", "target"])
def test_prepare_wants_both_sides_of_a_split(
    side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "f", "a")
    arguments = ["prepare", "text", "--train-source", path, "--train-target", path]
    assert main([*arguments, f"--test-{side}", path, "--out", str(tmp_path / "d")]) == 2
    assert "--test-source and --test-target belong together" in capsys.readouterr().err
