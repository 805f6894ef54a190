"""The study of the methods' worth: its draws, its commands, and how radii are chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.cli.main import main as deltasam
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.figures import new_figure
from scripts.studies.worth import __main__ as worth
from scripts.studies.worth import report, runs
from scripts.studies.worth.data import write_tables
from scripts.studies.worth.plan import CONDITIONS, SYSTEMS, Condition

WORDS = [" ".join(["word"] * count) for count in (2, 4, 5, 6, 7, 8, 9, 20)]


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """Return a folder with a small SST-2, CoLA and MRPC."""
    rows = [(f"{text} {number}", number % 2) for number in range(5) for text in WORDS]
    for name, head, line in (
        ("SST-2", "sentence\tlabel\n", "{0}\t{1}\n"),
        ("CoLA", "", "src\t{1}\t\t{0}\n"),
        ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n", "{1}\t1\t2\t{0}\tb\n"),
    ):
        (tmp_path / name).mkdir()
        for file in ("train.tsv", "dev.tsv"):
            text = head + "".join(line.format(*row) for row in rows)
            (tmp_path / name / file).write_text(text)
    return tmp_path


def drawn(condition: Condition, seed: int, glue: Path) -> list[str]:
    write_tables(condition, seed, glue, glue / "out")
    return (glue / "out" / "train.tsv").read_text().splitlines()


@pytest.mark.parametrize(
    ("task", "head", "column"), [("sst-2", 1, 1), ("cola", 0, 1), ("mrpc", 1, 0)]
)
def test_a_draw_flips_its_share_of_labels_and_nothing_else(
    glue: Path, task: str, head: int, column: int
) -> None:
    clean = Condition(f"glue/{task}", 20, words=(5, 10))
    right = drawn(clean, 1, glue)
    wrong = drawn(replace(clean, flipped=0.3), 1, glue)
    changed = [(a.split("\t"), b.split("\t")) for a, b in zip(right, wrong, strict=True) if a != b]
    assert len(changed) == 6
    for before, after in changed:
        assert {before.pop(column), after.pop(column)} == {"0", "1"}
        assert before == after
    assert len(right) == head + 20
    assert len(set(right)) == head + 20  # of 30 that fit, none twice
    assert drawn(clean, 1, glue) == right
    assert sorted(drawn(clean, 2, glue)) != sorted(right)


def test_validation_sentences_are_all_there_sorted_by_length(glue: Path) -> None:
    drawn(Condition("glue/sst-2", 20, flipped=0.5, words=(5, 10)), 1, glue)
    before, after = ((glue / folder / "dev.tsv").read_text() for folder in ("SST-2", "out"))
    assert sorted(before.splitlines()) == sorted(after.splitlines())
    lengths = [len(line.split()) for line in after.splitlines()[1:]]
    assert lengths == sorted(lengths)


def test_what_cannot_be_drawn_is_said(glue: Path) -> None:
    with pytest.raises(UserError, match="30 training sentences of 5 to 10 words, 31 are"):
        drawn(Condition("glue/sst-2", 31, words=(5, 10)), 1, glue)
    with pytest.raises(UserError, match="STS-B has no two classes"):
        drawn(Condition("glue/sts-b", 3, flipped=0.5), 1, glue)


@pytest.mark.parametrize("name", ["sst-2-40", "sst-2-few"])
def test_every_cell_of_the_plan_is_a_command(
    name: str, glue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared: list[list[str]] = []

    def call(arguments: list[str]) -> int:
        if arguments[0] == "prepare":
            prepared.append(arguments)
            return 0
        return deltasam([*arguments, "--dry-run"])

    monkeypatch.setattr(runs, "deltasam", call)
    condition = replace(CONDITIONS[name], sentences=20, epochs=5)
    place = {"glue": glue, "encoder": glue / "encoder", "out": glue / "draw3"}
    runs.run_draw(condition, 3, list(SYSTEMS), **place)
    assert prepared[0][:2] == ["prepare", "glue/sst-2"]
    lines = capsys.readouterr().out.splitlines()
    cells = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    assert cells[0] == "none-seed3"
    assert "per_instance-rho0.01-sam-tail0.25-seed3" in cells
    assert ("sam-rho0.08-seed3" in cells) == (name == "sst-2-few")
    radii = [condition.system(each).radii or [""] for each in SYSTEMS]
    assert len(cells) == len(set(cells)) == sum(map(len, radii))
    commands = [line for line in lines if "--max-update 10 " in f"{line} "]
    assert len(commands) == len(cells)
    assert all("--seed 3 " in line for line in commands)


def one_run(method: str, rho: str, seed: int, halves: tuple[float, float], **grid: str) -> Any:
    return {
        "method": method,
        "grid": {"rho": rho, **grid} if rho else grid,
        "seed": seed,
        "metric": "accuracy",
        "halves": halves,
        "valid": [70.0, 90.0, 80.0],
        "train": 60.0,
        "risk": 0.5,
        "seconds": 10.0 if method == "none" else 20.0,
    }


@pytest.fixture
def record() -> dict[str, Any]:
    """Return a record in which the halves choose different radii of sam."""
    kept = [one_run("none", "", seed, (50.0, 52.0)) for seed in (1, 2, 3)]
    for seed in (1, 2):
        kept += [
            one_run("sam", "0.02", seed, (60.0 + seed, 40.0)),
            one_run("sam", "0.03", seed, (55.0, 70.0)),
            one_run("sam", "0.9", seed, (99.0, 99.0)),
            one_run("sam", "0.02", seed, (99.0, 99.0), **{"sam-groups": "4"}),
            one_run("sam", "0.05", seed, (10.0, 10.0)),
        ]
    kept[-1]["seconds"] = None  # it was broken off
    return {
        "study": "worth",
        "settings": {"condition": "sst-2-40"},
        "hardware": {"processor": "P"},
        "versions": {"torch": "T"},
        "runs": [*kept, one_run("sam", "0.02", 3, (0.0, 0.0))],
    }


def test_each_half_is_scored_at_the_radius_that_the_other_chose(record: dict[str, Any]) -> None:
    # A draw without all radii, a system without them and a radius of no plan do not count.
    (all_of_them,) = report.joined([record])
    assert report.pair(all_of_them, "groups", "none") is None
    found = report.pair(all_of_them, "sam", "none")
    assert found is not None
    ours, plain = found
    # The first half chooses 0.02 and the second 0.03: scored are 40 and 55.
    assert ours.radii == ("0.02", "0.03")
    assert ours.scores == [47.5, 47.5]
    assert plain.scores == [51.0, 51.0]
    assert (ours.best, ours.train, ours.risk) == ([90.0] * 2, [60.0] * 2, [0.5] * 2)
    assert (
        report.pair(all_of_them, "none", "none")
        == (report.result(report.runs_of(all_of_them, "none")),) * 2
    )
    assert len(report.runs_of(all_of_them, "none")[""]) == 3


def test_a_condition_with_larger_radii_counts_draws_that_have_them(record: dict[str, Any]) -> None:
    runs = [*record["runs"], one_run("sam", "0.08", 2, (65.0, 65.0))]
    few = {"settings": {"condition": "sst-2-few"}, "runs": runs}
    (all_of_them,) = report.joined([record | few])
    found = report.runs_of(all_of_them, "sam")
    assert list(found) == ["0.02", "0.03", "0.05", "0.08"]
    assert {run["seed"] for runs in found.values() for run in runs} == {2}


def test_the_table_shows_difference_and_chance(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    figure = tmp_path / "figure.svg"
    worth.main(["--show", str(path), "--plot", str(figure)])
    shown = capsys.readouterr().out
    assert "1,000 training sentences of SST-2, 40% of them with the wrong label" in shown
    cells = shown.splitlines()[-1].split(" | ")
    assert cells[1:5] == ["0.02, 0.03", "47.5 ± 0.0", "-3.5", "0.500"]
    assert cells[-2:] == ["2.00", "2 |"]
    assert shown.splitlines()[:3] == [
        "| score | SST-2, 1,000, 40% wrong |",
        "| --- | --: |",
        "| `sam` − `none` | -3.5 (p 0.5, n 2) |",
    ]
    assert "40% wrong" in figure.read_text()


def test_records_stand_side_by_side(record: dict[str, Any], tmp_path: Path) -> None:
    # The numbers of a regression have no accuracy.
    runs = [run | {"train": None} for run in record["runs"][:3]]
    other = record | {"settings": {"condition": "sts-b"}, "runs": runs}
    shown = report.tables([record, other]).splitlines()
    assert shown[0] == "| score | SST-2, 1,000, 40% wrong | STS-B, 1,000 |"
    assert shown[2] == "| `sam` − `none` | -3.5 (p 0.5, n 2) |  |"
    assert shown[-1].split(" | ")[4:8] == ["", "90.0", "", "0.500"]
    more = [other | {"settings": {"condition": name}} for name in ("sst-2-0", "sst-2-few")]
    report.draw([record, other, *more], tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().count("STS-B, 1,000") == 1


def test_records_of_several_machines_are_joined(record: dict[str, Any]) -> None:
    def one(method: str, seed: int, score: float, seconds: float | None) -> Any:
        rho = "0.03" if method == "sam" else ""
        return one_run(method, rho, seed, (score, score)) | {"seconds": seconds}

    first = record | {
        "runs": [one("none", 1, 50.0, 10.0), one("none", 2, 52.0, 30.0), one("sam", 1, 60.0, 30.0)]
    }
    second = record | {
        "hardware": {"processor": "Q"},
        "runs": [one("none", 2, 99.0, 1.0), one("sam", 1, 99.0, 3.0), one("sam", 2, 64.0, 2.0)],
    }
    third = record | {"runs": [one("sam", 3, 70.0, 5.0), one("sam", 4, 70.0, None)]}
    (all_of_them,) = report.joined([first, second, third])
    assert all_of_them.places == "P, torch T; Q, torch T"
    found = [
        (run["method"], run["seed"], run["halves"][0], run["time"]) for run in all_of_them.runs
    ]
    assert found == [
        ("none", 1, 50.0, 0.5),
        ("none", 2, 52.0, 1.5),
        ("sam", 1, 60.0, 1.5),
        ("sam", 2, 64.0, 2.0),  # over the plain training of its own machine
        ("sam", 3, 70.0, None),
        ("sam", 4, 70.0, None),
    ]
    assert report.result({"0.03": all_of_them.runs[2:]}).time == 1.75
    assert report.result({"0.03": all_of_them.runs[4:]}).time is None


def test_runs_are_collected_from_their_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = [{"accuracy": 50.0}, {"accuracy": 75.0}]
    kept = {
        "recipe": "glue/sst-2",
        "method": "none",
        "grid": {},
        "seed": 2,
        "updates": 9,
        "metrics": {"accuracy": 75.0},
        "examples": {"predictions": "0 1 1 1", "labels": "0 1 0 1"},
        "epochs": {"train": epochs, "valid": epochs},
        "adversarial_risk": {"risk": 0.7, "loss": 0.6},
        "seconds": {"train_processor": 3.5},
    }
    folder = tmp_path / "sst-2-0" / "draw2" / "records"
    folder.mkdir(parents=True)
    (folder / "none-seed2.json").write_text(json.dumps(kept))
    unfinished = {name: value for name, value in kept.items() if name != "adversarial_risk"}
    (folder / "sam-seed2.json").write_text(json.dumps(unfinished))
    worth.main(["--condition", "sst-2-0", "--out", str(tmp_path), "--collect", "--json"])
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["halves"] == [50.0, 100.0]  # sentences 1 and 3, and 2 and 4
    assert (found["valid"], found["train"]) == ([50.0, 75.0], 75.0)
    assert (found["risk"], found["loss"], found["seconds"]) == (0.7, 0.6, 3.5)


def test_a_point_is_as_high_in_every_panel(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = new_figure(10, 4)
    monkeypatch.setattr(report, "new_figure", lambda *size: figure)
    flat = record | {
        "settings": {"condition": "sst-2-0"},
        "runs": [run | {"halves": (70.0, 70.0)} for run in record["runs"]],
    }
    report.draw([record, flat], tmp_path / "figure.svg")
    first, second = (panel.get_ylim() for panel in figure.axes)
    assert first[1] - first[0] == pytest.approx(second[1] - second[0])
    assert first[0] < 10  # its least score
    assert first[1] > 51  # its largest
    assert sum(second) / 2 == pytest.approx(70)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--condition NAME --out DIR"),
        ("--condition sst-2-0 --out absent", "--glue DIR --encoder DIR"),
        ("--condition sst-2-0 --out absent --collect", "nothing was trained there"),
    ],
)
def test_what_is_missing_is_said(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        worth.main(words.split())
    assert message in capsys.readouterr().err
