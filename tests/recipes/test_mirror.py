"""Sentences to embed: preparing, training, scoring and Table 2, without fairseq."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltasam_fairseq.analysis.paper_tables import table_2
from deltasam_fairseq.cli.main import main
from deltasam_fairseq.data import pipeline
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.mirror import PreparedMirror, prepare_mirror
from deltasam_fairseq.data.sts import DEVELOPMENT, PAIRS, PreparedSts, StsFile
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import embedding
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.sweep_folder import SweepFolder

LINES = ["A cat.", "A dog.", "A bird sings.", "Rain."]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (pipeline, embedding):
        monkeypatch.setattr(module, "require_fairseq", lambda: None)
    Path("lines.txt").write_text("\n".join([*LINES, "Rain."]) + "\n")


@pytest.fixture
def encoder() -> PreparedEncoder:
    folder = Path("models/minilm_l6")
    folder.mkdir(parents=True)
    for name in ("model.pt", "dict.txt", "vocab.txt"):
        (folder / name).write_text(f"{name}\n")
    facts = {
        **{"family": "bert", "bytes": 9, "sha256": "e", "dict_sha256": "d"},
        **{"lowercase": True, "strip_accents": True, "split_chinese": True},
        "head": {"tasks": [], "classes": []},
    }
    (folder / PreparedEncoder.MARKER).write_text(json.dumps(facts))
    return PreparedEncoder.load(folder)


def test_a_file_of_sentences_is_kept_with_the_vocabulary(
    encoder: PreparedEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", "mirror", "--sentences", "lines.txt", "--model", "minilm_l6"]
    assert main(arguments) == 0
    assert "finished; 5 sentences (1 of them again)" in capsys.readouterr().out
    data = PreparedMirror.load(Path("data/mirror/minilm_l6"))
    names = {path.name for path in data.binary.iterdir()}
    assert names == {"train.txt", "dict.txt", "vocab.txt", "cutting.json"}
    assert json.loads((data.binary / "cutting.json").read_text()) == encoder.cutting
    assert (data.binary / "train.txt").read_text() == Path("lines.txt").read_text()
    assert main(arguments) == 0
    assert "finished before" in capsys.readouterr().out
    Path("lines.txt").write_text("A cat.\n\nA dog.\n")
    assert main(arguments) == 2
    assert "lines.txt, line 2: empty; every line must be a sentence" in capsys.readouterr().err


def run_of(data: PreparedMirror) -> RunFolder:
    run = RunFolder(Path("run"))
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "checkpoint_last.pt").write_bytes(b"weights")
    run.write_record(
        {
            **{"recipe": "mirror", "data": str(data.path), "data_sha256": data.sha256},
            "starts": [{"command": ["fairseq-train", "--cpu"]}],
        }
    )
    return run


@pytest.fixture
def run(encoder: PreparedEncoder) -> RunFolder:
    return run_of(prepare_mirror(Path("data/mirror/minilm_l6"), Path("lines.txt"), encoder))


def vectors_are(monkeypatch: pytest.MonkeyPatch, vectors: Any) -> list[list[str]]:
    """Let a program of ours write these vectors; returns the commands."""
    commands = []

    def run_program(what: str, command: list[str], log: Path) -> None:
        lines = Path(command[command.index("--lines") + 1]).read_text().splitlines()
        made = np.array([vectors(line) for line in lines], dtype=np.float32)
        np.save(command[command.index("--out") + 1], made)
        commands.append(command)

    monkeypatch.setattr(embedding, "run_program", run_program)
    return commands


def sets_are(monkeypatch: pytest.MonkeyPatch, files: list[StsFile]) -> None:
    class Sets:
        facts = {"sha256": "0123456789"}

        def sets(self) -> dict[str, list[StsFile]]:
            return dict.fromkeys((*PAIRS, DEVELOPMENT), files)

    monkeypatch.setattr(PreparedSts, "load", lambda folder: Sets())


def by_angle(line: str) -> list[float]:
    """A vector at as many degrees as the line says."""
    angle = np.deg2rad(float(line))
    return [float(np.cos(angle)), float(np.sin(angle))]


# Within each file the order is right, over both it is not: "mean" would say 100.
FILES = [
    StsFile("a", ["0", "0", "0"], ["10", "20", "30"], ["3", "2", ""]),
    StsFile("b", ["0", "0"], ["40", "50"], ["5", "4"]),
]


def test_a_run_is_scored_over_all_pairs_of_a_set(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = vectors_are(monkeypatch, by_angle)
    sets_are(monkeypatch, FILES)
    assert main(["evaluate", "run", "--cpu"]) == 0
    said = capsys.readouterr().out
    assert "average    -60.00" in said
    assert "sts|metric:spearman|setting:all|pairs:01234567" in said
    assert commands[0][-1] == "--cpu"
    scores = json.loads((run.predictions("test") / "scores.json").read_text())
    assert list(scores["metrics"]) == ["average", *PAIRS]
    assert scores["sets"]["STS12"]["spearman_mean_of_files"] == pytest.approx(100)
    assert scores["n"] == 7 * 4
    assert main(["evaluate", "run", "--split", "valid"]) == 0
    assert "STS-B dev  -60.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (lambda line: [1.0, 2.0], "STS12: "),
        (lambda line: [float("nan"), 1.0], "the embedding of '0' is not finite; the training div"),
        (lambda line: [0.0, 0.0], "the embedding of '0' is zero"),
    ],
)
def test_a_model_that_collapsed_is_no_score(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, vector: Any, message: str
) -> None:
    vectors_are(monkeypatch, vector)
    sets_are(monkeypatch, FILES)
    data = PreparedMirror.load(Path("data/mirror/minilm_l6"))
    with pytest.raises(UserError, match=message):
        embedding.sts_record(data, RECIPES.get("mirror").kind.trained(run), run, cpu=True)


def test_anyones_sentences_are_embedded(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors_are(monkeypatch, by_angle)
    Path("mine.txt").write_text("0\n90\n0\n")
    assert main(["embed", "run", "mine.txt", "--out", "vectors.npy"]) == 0
    assert capsys.readouterr().out == "vectors.npy: float32 of shape (3, 2)\n"
    assert np.load("vectors.npy") == pytest.approx(np.array([[1, 0], [0, 1], [1, 0]]), abs=1e-6)
    run.write_record({**run.record(), "recipe": "text"})
    assert main(["embed", "run", "mine.txt", "--out", "vectors.npy"]) == 2
    assert "is of the recipe text, which embeds no sentences" in capsys.readouterr().err


def test_table_2_has_means_over_seeds_beside_the_published() -> None:
    table = table_2([Path("nothing")])
    rows = {row[:2]: row[2:] for row in table.rows}
    assert rows["Mirror-BERT, vanilla", "published"][-1] == "74.85"
    assert rows["Mirror-RoBERTa, δ-SAM + noise", "published"][-1] == "76.31"
    assert set(rows["Mirror-BERT, SAM", "ours, bert_base_uncased"]) == {"not run"}
    folder = SweepFolder(Path("sweeps/mirror/bert_base_uncased"))
    for seed, value in ((1, 70.0), (2, 72.0)):
        record = {
            **{"recipe": "mirror", "recipe_version": 1, "model": "bert_base_uncased"},
            **{"method": "sam", "seed": seed, "grid": {}, "flags": {}, "data_sha256": "d"},
            **{"encoder_sha256": "e", "signature": "s", "n": 28, "updates": 50},
            "metrics": {"average": value, **dict.fromkeys(PAIRS, value)},
            "seconds": {"train": 1.0},
            "interruptions": 0,
            "hardware": {},
        }
        folder.write_record(f"sam-seed{seed}", record)
    rows = {row[:2]: row[2:] for row in table_2([Path("sweeps")]).rows}
    assert rows["Mirror-BERT, SAM", "ours, bert_base_uncased, n=2"] == ("71.00",) * 8
    assert rows["Mirror-BERT, SAM", "ours - published"][-1] == "-4.50"
