"""From tables to binary files, with what is said about them."""

import json
from pathlib import Path

import pytest

from deltasam_fairseq.conversion.prepare_encoder import EncoderRequest, prepare_encoder
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.labelled_sentences import (
    PreparedSentences,
    SentenceOptions,
    prepare_sentences,
)
from deltasam_fairseq.errors import UserError
from tests.support.encoder_toys import write_bert, write_tables

pytestmark = pytest.mark.fairseq


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PreparedEncoder:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    place = tmp_path_factory.mktemp("encoder")
    request = EncoderRequest(write_bert(place / "hf"))
    return prepare_encoder(place / "out", request, say=lambda line: None)


@pytest.mark.usefixtures("warm_programs")
def test_scores_are_divided_and_inputs_cut(tmp_path: Path, encoder: PreparedEncoder) -> None:
    table = tmp_path / "STS-B"
    table.mkdir()
    rows = [("the cat sat far .", "a dog", "3.800"), ("no", "yes", "0.000"), ("bad row", "")]
    lines = ["sentence1\tsentence2\tscore", *("\t".join(row) for row in rows)]
    for name in ("train", "dev"):
        (table / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines))
    said: list[str] = []
    task, out = GLUE["sts-b"], tmp_path / "out"
    with pytest.raises(UserError, match="line 4: 2 columns, not 3"):
        prepare_sentences(out, task, table, encoder, SentenceOptions(8), say=said.append)
    assert not out.exists()
    options = SentenceOptions(8, skip_malformed=True)
    data = prepare_sentences(out, task, tmp_path, encoder, options, say=said.append)
    assert data.facts["rows"] == {"train": 2, "valid": 2}
    assert data.facts["malformed"] == {"train": 1, "valid": 1}
    labels = (data.binary / "label" / "train.label").read_text().split()
    assert [float(label) for label in labels] == [pytest.approx(0.76), 0.0]
    assert data.labels("valid") == ["3.800", "0.000"]
    assert data.pieces("train", "input0").read_text().splitlines()[0] == "the cat sat"
    assert "train: 1 of 2 inputs cut to 8 tokens" in said
    assert any("left out 1 malformed row(s): line 4" in line for line in said)
    assert any("the official STS-B has 5,749" in line for line in said)
    prepare_sentences(out, task, tmp_path, encoder, options, say=said.append)
    assert said[-1].endswith("nothing to do")
    with pytest.raises(UserError, match="max_tokens was 8, now 9"):
        prepare_sentences(
            out, task, tmp_path, encoder, SentenceOptions(9, skip_malformed=True), say=said.append
        )


def test_files_that_are_missing_and_folders_of_another_kind(
    tmp_path: Path, encoder: PreparedEncoder
) -> None:
    write_tables(tmp_path)
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"dev.tsv: no such file; the folder must hold RTE with"):
        prepare_sentences(
            tmp_path / "out", GLUE["rte"], tmp_path, encoder, SentenceOptions(10), say=print
        )
    with pytest.raises(UserError, match="deltasam prepare RECIPE --glue DIR --model NAME"):
        PreparedSentences.load(tmp_path)
    (tmp_path / "prepared.json").write_text(json.dumps({"kind": "cnndm"}))
    with pytest.raises(UserError, match="was made for cnndm, not for a task on sentences"):
        PreparedSentences.load(tmp_path)
    found = PreparedSentences(tmp_path, {"rows": {"test": 3}})
    with pytest.raises(UserError, match="has no split 'valid'; it has test"):
        found.labels("valid")
    with pytest.raises(UserError, match="test has no labels, only sentences"):
        found.labels("test")


def test_a_second_test_set_without_the_first_is_refused(
    tmp_path: Path, encoder: PreparedEncoder
) -> None:
    for name in ("train", "dev_matched", "test_mismatched"):
        (tmp_path / f"{name}.tsv").write_text("sentence1\tsentence2\tgold_label\n")
    with pytest.raises(UserError, match="has test_mismatched.tsv without test_matched.tsv; add it"):
        prepare_sentences(
            tmp_path / "out", GLUE["mnli"], tmp_path, encoder, SentenceOptions(10), say=print
        )


def test_inputs_keep_a_token_of_each_sentence(tmp_path: Path, encoder: PreparedEncoder) -> None:
    write_tables(tmp_path)
    with pytest.raises(UserError, match="--max-tokens must be at least 5, got 4"):
        prepare_sentences(
            tmp_path / "out", GLUE["rte"], tmp_path, encoder, SentenceOptions(4), say=print
        )
