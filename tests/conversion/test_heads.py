"""A head starts with its classes in GLUE's order, or not at all."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.conversion.encoder_weights import HEAD
from deltasam_fairseq.conversion.heads import place_head
from deltasam_fairseq.conversion.prepare_encoder import EncoderRequest, prepare_encoder
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.checks_before_training import check_start
from tests.support.encoder_toys import SIZE_FLAGS, bert_state, write_bert

WEIGHT, BIAS = f"{HEAD}.out_proj.weight", f"{HEAD}.out_proj.bias"
#: As on the Hub: roberta-large-mnli, and what the script run_glue writes for each task.
ON_THE_HUB = {
    "MNLI": ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"],
    "RTE": ["entailment", "not_entailment"],
    "QNLI": ["entailment", "not entailment"],
    "QQP": ["not_duplicate", "duplicate"],
    "MRPC": ["not_equivalent", "equivalent"],
    "CoLA": ["unacceptable", "acceptable"],
    "SST-2": ["NEGATIVE", "POSITIVE"],
}
#: The row of each class of GLUE's, by hand.
ROWS = {"MNLI": [2, 1, 0], "RTE": [1, 0], "QNLI": [1, 0]}


def head(rows: int) -> dict[str, Tensor]:
    numbers = torch.arange(float(rows))
    return {WEIGHT: numbers[:, None].repeat(1, 3), BIAS: numbers.clone()}


def named(labels: list[str], **config: Any) -> dict[str, Any]:
    return {"id2label": {str(row): label for row, label in enumerate(labels)}, **config}


def test_every_task_with_classes_is_known() -> None:
    assert ON_THE_HUB.keys() == {task.name for task in GLUE.values() if task.classes}


@pytest.mark.parametrize("task", ON_THE_HUB)
@pytest.mark.parametrize("turned", [False, True])
def test_rows_follow_the_classes_that_their_labels_name(task: str, turned: bool) -> None:
    labels, rows = ON_THE_HUB[task], ROWS.get(task, [0, 1])
    if turned:
        labels, rows = labels[::-1], [len(labels) - 1 - row for row in rows]
    found = head(len(labels))
    placed = place_head(found, named(labels), "bert")
    assert task in placed.tasks
    assert found[BIAS].tolist() == found[WEIGHT][:, 0].tolist() == rows
    assert placed.classes == tuple(labels[row] for row in rows)


def test_labels_as_the_tables_have_them_fit_every_task_that_has_them() -> None:
    found = head(2)
    placed = place_head(found, named(["1", "0"]), "bert")
    assert set(placed.tasks) == {"QQP", "MRPC", "CoLA", "SST-2"}
    assert found[BIAS].tolist() == [1, 0]


def test_label2id_alone_names_them_as_well() -> None:
    found = head(3)
    label2id = {"entailment": 1, "neutral": 2, "contradiction": 0}
    assert place_head(found, {"label2id": label2id}, "bert").tasks == ("MNLI",)
    assert found[BIAS].tolist() == [1, 2, 0]


MNLI = ON_THE_HUB["MNLI"]


@pytest.mark.parametrize(
    ("rows", "config", "reason"),
    [
        (
            3,
            named(["LABEL_0", "LABEL_1", "LABEL_2"]),
            r"labels \(LABEL_0, .*\) are not the classes",
        ),
        (3, {}, "no id2label in config.json names its rows"),
        (3, named(["joy", "anger", "fear"]), "are not the classes of any task of GLUE"),
        (3, named(MNLI[:2]), "names 2 labels, but it has 3 rows"),
        (3, {"id2label": {"0": MNLI[0], "1": MNLI[1], "5": MNLI[2]}}, "no id2label"),
        (3, named(MNLI, label2id={label: 2 - row for row, label in enumerate(MNLI)}), "label2id"),
        (1, named(["LABEL_0"]), "nothing says on which scale its one output is"),
        (3, named(MNLI, architectures=["BertForTokenClassification"]), "a BertForTokenClass"),
        (2, named(["entailment", "entailment"]), "are not the classes"),
        (3, {"id2label": MNLI}, "no id2label in config.json names its rows"),
        (3, {"id2label": "MNLI", "label2id": [0]}, "no id2label in config.json names its rows"),
        (3, named(MNLI, architectures="BertForTokenClassification"), "a BertForTokenClass"),
    ],
)
def test_a_head_that_cannot_be_placed_is_left_out_and_said(
    rows: int, config: dict[str, Any], reason: str
) -> None:
    found = {**head(rows), "other": torch.ones(1)}
    placed = place_head(found, config, "bert")
    assert (placed.tasks, placed.classes) == ((), ())
    assert placed.note.startswith("left out: ")
    assert re.search(reason, placed.note)
    assert found.keys() == {"other"}


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_head_that_is_no_matrix_is_left_out(shape: tuple[int, ...]) -> None:
    found = {WEIGHT: torch.ones(shape), BIAS: torch.ones(3)}
    assert "not that of a classifier" in place_head(found, named(MNLI), "bert").note
    found = {**head(3), BIAS: torch.ones(2)}
    assert "not that of a classifier" in place_head(found, named(MNLI), "bert").note


def test_a_robertas_head_has_a_hidden_layer() -> None:
    found = {**head(3), f"{HEAD}.dense.weight": torch.eye(3), f"{HEAD}.dense.bias": torch.ones(3)}
    assert place_head(found, named(MNLI), "roberta").tasks == ("MNLI",)
    assert torch.equal(found[f"{HEAD}.dense.weight"], torch.eye(3))
    found = head(3)
    note = place_head(found, named(MNLI), "roberta").note
    assert note == "left out: it is not that of a classifier of sentences"
    assert not found


# -- through the preparation


def prepare(tmp_path: Path, config: dict[str, Any], classes: int = 3) -> PreparedEncoder:
    pytest.importorskip("safetensors")
    folder = write_bert(tmp_path / "hf", bert_state(classes=classes), **config)
    return prepare_encoder(tmp_path / "out", EncoderRequest(folder), say=lambda line: None)


def model_of(encoder: PreparedEncoder) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(encoder.checkpoint, weights_only=False)["model"]
    return found


def test_the_checkpoint_has_the_rows_in_their_places(tmp_path: Path) -> None:
    encoder = prepare(tmp_path, named(MNLI))
    state, found = bert_state(classes=3), model_of(encoder)
    assert torch.equal(found[WEIGHT], state["classifier.weight"][[2, 1, 0]])
    assert torch.equal(found[BIAS], state["classifier.bias"][[2, 1, 0]])
    facts = json.loads((encoder.path / "model.json").read_text())["head"]
    assert facts["tasks"] == ["MNLI"]
    assert facts["classes"] == ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]


def test_what_became_of_the_head_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    write_bert(tmp_path / "hf", bert_state(classes=3), **named(MNLI))
    command = ["prepare", "encoder", "hf", "--out", "out"]
    assert main(command) == 0
    assert "kept for MNLI; rows: ENTAILMENT, NEUTRAL, CONTRADICTION" in capsys.readouterr().out
    assert main([*command, "--new-head"]) == 2
    assert "out was made with its head; pass --force" in capsys.readouterr().err
    assert main([*command, "--new-head", "--cased", "--force"]) == 0
    said = capsys.readouterr().out
    assert "head: left out: as asked for" in said
    assert "cased: --cased" in said
    found = PreparedEncoder.load(Path("out"))
    assert WEIGHT not in model_of(found)


@pytest.mark.parametrize(
    ("task", "labels", "refused"),
    [
        ("RTE", ON_THE_HUB["SST-2"], True),
        ("RTE", ON_THE_HUB["QNLI"], False),
        ("MRPC", ON_THE_HUB["QQP"], True),
        ("RTE", MNLI, False),
        ("RTE", ["LABEL_0", "LABEL_1"], False),
    ],
)
def test_a_head_of_another_task_does_not_start_in_silence(
    task: str, labels: list[str], refused: bool, tmp_path: Path
) -> None:
    encoder = prepare(tmp_path, named(labels), classes=len(labels))
    settings = {**encoder.cutting, "dict.txt": encoder.facts["dict_sha256"]}
    data = PreparedSentences(Path("data"), {"task": task, "settings": settings})
    command = ["--restore-file", str(encoder.checkpoint), "--arch", "deltasam_bert_base"]
    command += [*SIZE_FLAGS, "--num-classes", "2"]
    if not refused:
        check_start(command, encoder, data)
        return
    with pytest.raises(UserError, match=f"as many classes as {task}, .*hf --new-head --out"):
        check_start(command, encoder, data)


ROBERTA = argparse.Namespace(arch="roberta_base")


@pytest.mark.parametrize("built", [{"args": ROBERTA}, {"args": None, "cfg": {"model": ROBERTA}}])
def test_the_head_of_a_roberta_of_fairseq_names_no_classes(
    built: dict[str, Any], tmp_path: Path
) -> None:
    """Its rows are in the order in which classes were frequent in the data of its training."""
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    (gpt2 / "encoder.json").write_text("{}")
    (gpt2 / "vocab.bpe").write_text("#version: 0.2\n")
    (gpt2 / "dict.txt").write_text("0 1\n1 1\n")
    embedding = {"encoder.sentence_encoder.embed_tokens.weight": torch.ones(7, 4)}
    others = {"classification_heads.mnli.out_proj.weight": torch.ones(3, 4)}
    unnamed, none = "left out: nothing in the checkpoint names its rows", "the checkpoint has none"
    for state, note in ((head(3), unnamed), ({}, none)):
        model = {**embedding, **others, **state}
        torch.save({**built, "model": model, "extra": 1}, tmp_path / "model.pt")
        request = EncoderRequest(tmp_path / "model.pt", gpt2)
        encoder = prepare_encoder(tmp_path / "out", request, force=True, say=lambda line: None)
        assert encoder.facts["head"]["note"] == note
        found = torch.load(encoder.checkpoint, weights_only=False)
        assert found["model"].keys() == {*embedding, *others}
        assert found["extra"] == 1
    with pytest.raises(UserError, match="--cased are for a BERT"):
        prepare_encoder(tmp_path / "b", EncoderRequest(tmp_path / "model.pt", gpt2, lowercase=True))
    torch.save({**built, "model": others}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"embeds 0 symbols, but .*dict\.txt has 2 words"):
        prepare_encoder(tmp_path / "b", EncoderRequest(tmp_path / "model.pt", gpt2))
