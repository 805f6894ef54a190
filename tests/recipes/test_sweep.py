"""What a sweep trains, keeps and skips; without fairseq."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.data.mirror import PreparedMirror
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import classification
from deltasam_fairseq.recipes import sweep as module
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.classification import Classified
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.sweep import Sweep, run_sweep
from deltasam_fairseq.recipes.sweep_folder import SweepFolder, read_records
from deltasam_fairseq.recipes.sweep_plan import plan

PREDICTED = ["entailment", "not_entailment", "not_entailment"]
UPDATE = '| INFO | train_inner | {"epoch": 1, "loss": "0.5", "num_updates": "9"}\n'
VALID = '| INFO | valid | {"epoch": 1, "valid_accuracy": "62", "valid_num_updates": "9"}\n'


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Return a sweep whose runs do nothing but leave what runs leave."""

    def train(request: Any, *, resume: bool, **options: Any) -> None:
        run: RunFolder = request.run
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        for name in ("best", "last"):
            (run.checkpoints / f"checkpoint_{name}.pt").write_text(name)
        run.log.write_text(UPDATE + VALID)
        command = request.command(check=False)
        facts = {**request.facts(), "versions": {}, "commit": None, "hardware": {}}
        starts = [{"command": command, "seconds": 2.0, "processor_seconds": 1.5}]
        run.write_record({**facts, "finished": True, "starts": starts})
        if "--fail" in request.overrides:
            raise UserError("it failed")

    def classify(task: Any, data: Any, run: RunFolder, split: str, **options: Any) -> Classified:
        scores = {"accuracy": 100 / 3, "n": 3, "signature": "s", "checkpoint_sha256": "c"}
        return Classified(run.path, PREDICTED, scores, None)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(classification, "classify", classify)
    facts = {"task": "RTE", "rows": {"train": 9, "valid": 3, "test": 2}, "sha256": "d"}
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "valid.label").write_text("entailment\n" * 3)
    return Sweep(
        recipe=RECIPES.get("glue/rte"),
        data=PreparedSentences(tmp_path / "data", facts),
        model="minilm_l6",
        encoder=PreparedEncoder(tmp_path / "encoder", {"sha256": "e"}),
        folder=SweepFolder(tmp_path / "sweep"),
    )


def silent(line: str) -> None:
    """Say nothing."""


def test_a_record_has_everything_and_the_best_checkpoint_stays(sweep: Sweep) -> None:
    cells = plan(["delta_sam"], [4], {"rho": ["0.07"]})
    assert run_sweep(sweep, cells, say=silent).finished == ["delta_sam-rho0.07-seed4"]
    (record,) = read_records([sweep.folder.path])
    assert record["metrics"] == {"accuracy": 100 / 3}
    assert record["flags"]["sam-rho"] == "0.07"
    assert record["flags"]["sam-eta"] == "0.0005"
    assert record["grid"] == {"rho": "0.07"}
    assert (record["seed"], record["updates"], record["interruptions"]) == (4, 9, 0)
    epoch = {"epoch": 1.0, "accuracy": 62.0, "num_updates": 9.0}
    assert record["epochs"] == {"train": [], "valid": [epoch]}
    assert record["seconds"]["train"] == 2.0
    assert record["seconds"]["train_processor"] == 1.5
    assert record["examples"] == {"split": "valid", "predictions": "1 0 0", "labels": "1 1 1"}
    left = sweep.folder.cell("delta_sam-rho0.07-seed4").rglob("*.pt")
    assert [path.name for path in left] == ["checkpoint_best.pt"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let adversarial risks be 2, and list the radii of those that were measured."""
    radii: list[float] = []

    def measure(data: Any, run: RunFolder, split: str, rho: float, **options: Any) -> Any:
        assert run.best_checkpoint.is_file()
        radii.append(rho)
        return {"risk": 2.0, "rho": rho, "split": split}

    monkeypatch.setattr(module, "measure_risk", measure)
    return radii


def test_a_risk_that_is_asked_for_later_is_added(sweep: Sweep, measured: list[float]) -> None:
    cells = plan(["none"], [1], {})
    run_sweep(sweep, cells, say=silent)
    (before,) = read_records([sweep.folder.path])
    said: list[str] = []
    for risk in (0.05, 0.05, None):
        run_sweep(replace(sweep, risk=risk), cells, say=said.append)
    assert measured == [0.05]
    assert said[0] == "1 of 1, none-seed1: lacks its adversarial risk"
    (after,) = read_records([sweep.folder.path])
    assert after.pop("adversarial_risk") == {"risk": 2.0, "rho": 0.05, "split": "valid"}
    assert after["seconds"].pop("adversarial_risk") >= 0
    assert after == before


def test_a_risk_in_a_record_is_not_replaced_by_one_of_another_radius(
    sweep: Sweep, measured: list[float]
) -> None:
    run_sweep(replace(sweep, risk=0.05), plan(["none"], [2], {}), say=silent)
    with pytest.raises(
        UserError, match=r"none-seed2 has its adversarial risk at 0\.05 .*--rho 0\.1"
    ):
        run_sweep(replace(sweep, risk=0.1), plan(["none"], [1, 2], {}), say=silent)
    assert measured == [0.05]
    assert sweep.folder.recorded() == ["none-seed2"]


def test_a_risk_that_fails_loses_nothing_of_the_run(
    sweep: Sweep, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise UserError("out of memory")

    cells = plan(["none"], [1], {})
    with monkeypatch.context() as patch:
        patch.setattr(module, "measure_risk", fail)
        outcome = run_sweep(replace(sweep, risk=0.05, keep=False), cells, say=silent)
    assert outcome.failed == {"none-seed1": "out of memory"}
    assert sweep.folder.recorded() == ["none-seed1"]
    monkeypatch.setattr(module, "train", lambda *args, **options: pytest.fail("trained again"))
    assert run_sweep(replace(sweep, risk=0.05, keep=False), cells, say=silent).finished
    assert measured == [0.05]
    assert not list(sweep.folder.cell("none-seed1").rglob("*.pt"))


def test_no_risk_of_checkpoints_that_were_discarded(sweep: Sweep, measured: list[float]) -> None:
    cells = plan(["none"], [1], {})
    run_sweep(replace(sweep, keep=False), cells, say=silent)
    outcome = run_sweep(replace(sweep, risk=0.05), cells, say=silent)
    assert "checkpoint_best.pt was discarded; without --adv" in outcome.failed["none-seed1"]
    assert measured == []


def test_a_record_has_no_path_of_its_machine(sweep: Sweep, tmp_path: Path) -> None:
    run_sweep(sweep, plan(["none"], [1], {}), say=silent)
    (record,) = read_records([sweep.folder.path])
    assert str(tmp_path) not in json.dumps(record)
    assert record["flags"]["save-dir"] == "checkpoints"
    assert record["flags"]["user-dir"] == "deltasam_user_dir"
    assert record["flags"]["restore-file"] == "model.pt"


def test_what_is_finished_is_skipped_and_what_fails_is_not(sweep: Sweep) -> None:
    cells = plan(["none", "sam"], [1], {})
    run_sweep(sweep, cells[:1], say=silent)
    outcome = run_sweep(sweep, cells, say=silent)
    assert outcome.summary() == "1 finished, 1 finished before"
    failing = plan(["none", "sam"], [2], {"fail": ["1"]})
    said: list[str] = []
    outcome = run_sweep(sweep, failing, say=said.append)
    assert outcome.failed == dict.fromkeys([cell.name for cell in failing], "it failed")
    assert "1 of 2, none-fail1-seed2: failed: it failed" in said
    assert len(list(read_records([sweep.folder.path]))) == 2


def test_a_run_that_trained_but_was_not_recorded_is_not_trained_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan(["none"], [1], {})
    run_sweep(sweep, cells, say=silent)
    (sweep.folder.path / "records" / "none-seed1.json").unlink()
    monkeypatch.setattr(module, "train", lambda *args, **options: pytest.fail("trained again"))
    assert run_sweep(sweep, cells, say=silent).finished == ["none-seed1"]


@pytest.mark.parametrize(
    ("left", "wanted"),
    [
        (["best", "last"], {"resume": True, "restart": False}),
        (["last-shard0"], {"resume": True, "restart": False}),
        # fairseq writes it first; from it alone fairseq would begin with random weights.
        (["best"], {"resume": False, "restart": True}),
        ([], {"resume": False, "restart": False}),
    ],
)
def test_a_broken_run_goes_on_or_is_begun_again(
    left: list[str], wanted: dict[str, bool], sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(sweep.folder.cell("none-seed1"))
    run.checkpoints.mkdir(parents=True)
    for name in left:
        (run.checkpoints / f"checkpoint_{name}.pt").touch()
    run.write_record({"finished": False})
    asked: list[dict[str, bool]] = []

    def train(request: Any, **options: Any) -> None:
        asked.append({name: options[name] for name in ("resume", "restart")})
        raise UserError("enough")

    monkeypatch.setattr(module, "train", train)
    run_sweep(sweep, plan(["none"], [1], {}), say=silent)
    assert asked == [wanted]


def test_one_damaged_run_does_not_keep_the_others_from_running(sweep: Sweep) -> None:
    run = RunFolder(sweep.folder.cell("none-seed1"))
    run.checkpoints.mkdir(parents=True)
    run.best_checkpoint.touch()
    (run.path / "run.json").write_text('{"finished": tr')
    outcome = run_sweep(sweep, plan(["none", "sam"], [1], {}), say=silent)
    assert "run.json is damaged: " in outcome.failed["none-seed1"]
    assert outcome.finished == ["sam-seed1"]


def test_data_of_another_task_stop_before_the_first_run(sweep: Sweep) -> None:
    other = replace(sweep, recipe=RECIPES.get("glue/qnli"))
    with pytest.raises(UserError, match="holds RTE, the recipe glue/qnli is for QNLI"):
        run_sweep(other, plan(["none"], [1], {}), say=silent)


def test_a_risk_that_a_task_has_not_stops_before_the_first_run(sweep: Sweep) -> None:
    data = PreparedMirror(sweep.data.path, {"sha256": "d"})
    other = replace(sweep, recipe=RECIPES.get("mirror"), data=data, risk=0.05)
    with pytest.raises(UserError, match="the recipe mirror has no adversarial risk; leave"):
        run_sweep(other, plan(["none"], [1], {}), say=silent)
    assert not sweep.folder.path.exists()


@pytest.mark.parametrize("name", ["seed", "save-dir", "sam-method", "method", "user-dir"])
def test_flags_that_say_what_a_run_is_stop_before_the_first_run(sweep: Sweep, name: str) -> None:
    cells = plan(["none"], [1], {})
    with pytest.raises(UserError, match=f"--{name} cannot be given as a flag of fairseq"):
        run_sweep(replace(sweep, overrides=[f"--{name}=7"]), cells, say=silent)
    with pytest.raises(UserError, match=f"--{name} cannot be given"):
        run_sweep(sweep, plan(["none"], [1], {name: ["7"]}), say=silent)
    assert not sweep.folder.path.exists()


def test_the_number_of_gpus_is_part_of_what_a_sweep_is(sweep: Sweep) -> None:
    run_sweep(sweep, [], say=silent)
    with pytest.raises(UserError, match="is a sweep with gpus None, not 8"):
        run_sweep(replace(sweep, gpus=8), [], say=silent)


def test_training_is_given_the_lock_of_its_run(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Path] = []

    def train(request: Any, *, resume: bool, **options: Any) -> None:
        held.extend(Path(f"/proc/self/fd/{n}").resolve() for n in options["inherited"])
        raise UserError("enough")

    monkeypatch.setattr(module, "train", train)
    run_sweep(sweep, plan(["none"], [1], {}), say=silent)
    assert held == [(sweep.folder.path / "locks" / "none-seed1").resolve()]


def test_a_run_that_somebody_works_on_is_left_alone(sweep: Sweep) -> None:
    cells = plan(["none", "sam"], [1], {})
    with sweep.folder.locked("none-seed1") as lock:
        assert lock is not None
        outcome = run_sweep(sweep, cells, say=silent)
    assert outcome.elsewhere == ["none-seed1"]
    assert outcome.finished == ["sam-seed1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text", "--model", "x"], "is no task on sentences; sweeps run those"),
        (["glue/rte", "--model", "x"], "has no model 'x'"),
        (["glue/rte", "--model", "minilm_l6", "--cell", "99"], "--cell 99: there are 15 runs"),
        (["glue/rte", "--model", "minilm_l6"], "is not a finished data folder"),
    ],
)
def test_sweeps_that_cannot_begin(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err


def dry_run(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, dict[str, str]]:
    """Return the flags of every run by its name, from what the command prints."""
    typed = ["sweep", "glue/sts-b", "--model", "minilm_l6", "--seeds", "1", "--dry-run"]
    assert main([*typed, *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not list(folder.iterdir())
    return {
        name.removeprefix("# "): flag_values(shlex.split(command))
        for name, command in zip(lines[::2], lines[1::2], strict=True)
    }


ALL = ["--methods", "none,sam,delta_sam,random,per_instance"]


def test_per_instance_has_twice_the_epochs_unless_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = dry_run(ALL, tmp_path, capsys)
    stop = ("max-epoch", "total-num-update", "warmup-updates")
    once = {name: int(runs["none-seed1"][name]) for name in stop}
    for name in ("sam-seed1", "delta_sam-seed1", "random-seed1"):
        assert {flag: int(runs[name][flag]) for flag in stop} == once
    twice = {flag: int(runs["per_instance-seed1"][flag]) for flag in stop}
    assert twice == {flag: 2 * value for flag, value in once.items()}

    typed = {"max-update": "180", "total-num-update": "170", "warmup-updates": "11"}
    flags = [part for flag, value in typed.items() for part in (f"--{flag}", value)]
    for name, run in dry_run([*ALL, *flags], tmp_path, capsys).items():
        assert {flag: run[flag] for flag in typed} == typed, name


def test_flags_behind_a_sweep_reach_every_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*ALL, "--grid", "rho=0.02", "--sam-per-instance-engine", "batched", "--lr=1e-4"]
    runs = dry_run(arguments, tmp_path, capsys)
    assert list(runs)[-1] == "per_instance-rho0.02-seed1"
    for run in runs.values():
        assert (run["sam-per-instance-engine"], run["lr"]) == ("batched", "1e-4")
    assert runs["per_instance-rho0.02-seed1"]["sam-rho"] == "0.02"
    assert runs["per_instance-rho0.02-seed1"]["sam-method"] == "per_instance"
