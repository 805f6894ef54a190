"""Records of runs: what they keep, what they leave out, and copies that are whole without a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.classification import examples, pack
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.sweep_folder import SweepFolder
from deltasam_fairseq.recipes.sweep_record import export_records, without_folders

RTE = GLUE["rte"]
PREDICTED = ["entailment", "not_entailment", "not_entailment"]


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    """Return a sweep of one run, whose record has no predictions yet."""
    data = tmp_path / "data"
    (data / "raw").mkdir(parents=True)
    (data / "raw" / "valid.label").write_text("entailment\n" * 3)
    facts = {"kind": "sentences", "rows": {"valid": 3}, "sha256": "d"}
    (data / PreparedSentences.MARKER).write_text(json.dumps(facts))
    folder = SweepFolder(tmp_path / "sweep")
    run = RunFolder(folder.cell("none-seed1"))
    run.predictions("valid").mkdir(parents=True)
    (run.predictions("valid") / "predictions.txt").write_text("".join(f"{p}\n" for p in PREDICTED))
    run.write_record({"data": str(data)})
    record = {
        "recipe": "glue/rte",
        "data_sha256": "d",
        "metrics": {"accuracy": 100 / 3},
        "flags": {"save-dir": str(tmp_path / "checkpoints"), "lr": "1e-4"},
    }
    folder.write_record("none-seed1", record)
    return folder


def silent(line: str) -> None:
    """Say nothing."""


def exported(out: SweepFolder) -> dict[str, Any]:
    found = out.record("none-seed1")
    assert found is not None
    return found


def test_a_copy_is_whole_and_of_no_machine(sweep: SweepFolder, tmp_path: Path) -> None:
    before = sweep.record("none-seed1")
    out = SweepFolder(tmp_path / "kept")
    assert export_records(RTE, sweep, out, say=silent) == 1
    found = exported(out)
    assert found["examples"] == {"split": "valid", "predictions": "1 0 0", "labels": "1 1 1"}
    assert found["flags"] == {"save-dir": "checkpoints", "lr": "1e-4"}
    assert found["metrics"] == {"accuracy": 100 / 3}
    assert [path.name for path in out.path.iterdir()] == ["records"]
    assert sweep.record("none-seed1") == before


def test_predictions_in_a_record_are_not_looked_for_again(
    sweep: SweepFolder, tmp_path: Path
) -> None:
    record = sweep.record("none-seed1") or {}
    sweep.write_record("none-seed1", {**record, "examples": {"predictions": "0"}})
    out = SweepFolder(tmp_path / "kept")
    export_records(RTE, sweep, out, data=tmp_path / "nowhere", say=silent)
    assert exported(out)["examples"] == {"predictions": "0"}


def test_a_record_whose_run_is_gone_is_kept_and_that_is_said(
    sweep: SweepFolder, tmp_path: Path
) -> None:
    (RunFolder(sweep.cell("none-seed1")).predictions("valid") / "predictions.txt").unlink()
    said: list[str] = []
    out = SweepFolder(tmp_path / "kept")
    export_records(RTE, sweep, out, say=said.append)
    assert said == ["none-seed1: its predictions are gone, so it cannot be tested over sentences"]
    assert "examples" not in exported(out)


def test_predictions_that_are_not_the_record_s_stop(sweep: SweepFolder, tmp_path: Path) -> None:
    predictions = RunFolder(sweep.cell("none-seed1")).predictions("valid") / "predictions.txt"
    predictions.write_text("entailment\n" * 3)
    with pytest.raises(UserError, match="its predictions are not those of the record"):
        export_records(RTE, sweep, SweepFolder(tmp_path / "kept"), say=silent)


def test_other_data_than_that_of_the_run_stops(sweep: SweepFolder, tmp_path: Path) -> None:
    facts = {"kind": "sentences", "rows": {"valid": 3}, "sha256": "another"}
    (tmp_path / "data" / PreparedSentences.MARKER).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="another hash"):
        export_records(RTE, sweep, SweepFolder(tmp_path / "kept"), say=silent)


def test_the_command_copies_to_a_folder_that_tables_read(
    sweep: SweepFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", "glue/rte", "--model", "minilm_l6", "--export", "kept"]
    assert main(arguments) == 2
    assert "has no finished run" in capsys.readouterr().err
    assert main([*arguments, "--out", "sweep"]) == 0
    assert capsys.readouterr().out == "kept/glue/rte/minilm_l6: 1 records\n"
    assert Path("kept/glue/rte/minilm_l6/records/none-seed1.json").is_file()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/jane doe/my project/a,b (old)/checkpoints", "checkpoints"),
        ("/srv/data/", "data"),
        ("/home/my a/x:/home/my b/y", "x:y"),
        ("file:///home/jane/x", "x"),
        ("models/m/model.pt", "models/m/model.pt"),
        ("../data/bin", "../data/bin"),
        ("tcp://localhost:9218", "tcp://localhost:9218"),
        ("(0.9, 0.98)", "(0.9, 0.98)"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_absolute_paths_keep_their_last_name_and_all_else_stays(value: str, expected: str) -> None:
    once = without_folders({"flag": value})
    assert once == without_folders(once) == {"flag": expected}


def test_classes_are_kept_by_their_ids() -> None:
    mnli = GLUE["mnli"]
    assert pack(mnli, ["contradiction", "entailment", "neutral", "2"]) == "2 0 1 2"
    kept = examples(GLUE["cola"], ["0", "1"], ["1", "1"])
    assert kept == {"split": "valid", "predictions": "0 1", "labels": "1 1"}


@given(st.lists(st.floats(0, 5), min_size=1))
def test_scores_are_kept_with_four_decimals(values: list[float]) -> None:
    kept = pack(GLUE["sts-b"], [repr(value) for value in values])
    assert [float(text) for text in kept.split(" ")] == pytest.approx(values, abs=5.001e-5)
