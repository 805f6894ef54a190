"""Tables of sentences: columns, labels, malformed rows; and GLUE's own files."""

from pathlib import Path

import pytest

from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.labelled_sentences import write_submission
from deltasam_fairseq.data.sentence_task import (
    Layout,
    SentenceTask,
    SplitFile,
    describe_malformed,
    read_rows,
)
from deltasam_fairseq.errors import UserError

PAIR = SplitFile("train", "train.tsv", Layout(True, ("b", "a"), "label"))
TASK = SentenceTask("Toy", "Toy", (PAIR,), ("no", "yes"), ("accuracy",))
SCORES = SentenceTask("Toy", "Toy", (PAIR,), (), ("pearson",), label_scale=5.0)


def write(folder: Path, *lines: str, end: str = "\n") -> Path:
    path = folder / "train.tsv"
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return path


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    path = write(
        tmp_path, "\ufefflabel\ta\tx\tb", 'yes\tone  "two\t\t three\u00a0four ', "no\t\t\tb"
    )
    rows = read_rows(path, TASK, PAIR)
    assert rows.texts == (["three four", "b"], ['one "two', ""])
    assert rows.labels == ["yes", "no"]
    assert len(rows) == 2


def test_carriage_returns_end_no_line_by_themselves(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\tlabel", "x\ry\tz\tyes", end="\r\n")
    assert read_rows(path, TASK, PAIR).texts == (["z"], ["x y"])


MALFORMED = ("a\tb\tlabel", "x\ty\tyes", "x\ty", "x\ty\tmaybe", "x\ty\tno\tz", "x\ty\tno")


def test_malformed_rows_are_named_by_line(tmp_path: Path) -> None:
    path = write(tmp_path, *MALFORMED)
    with pytest.raises(UserError) as error:
        read_rows(path, TASK, PAIR)
    message = str(error.value)
    assert (
        "3 malformed row(s): line 3: 2 columns, not 3; line 4: label 'maybe', not no or" in message
    )
    assert "line 5: 4 columns, not 3" in message
    assert "--skip-malformed" in message


def test_malformed_rows_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, *MALFORMED), TASK, PAIR, skip=True)
    assert rows.labels == ["yes", "no"]
    assert list(rows.malformed) == [3, 4, 5]
    assert describe_malformed(rows).startswith("3 malformed row(s): line 3")


def test_of_a_test_set_no_row_is_left_out(tmp_path: Path) -> None:
    split = SplitFile("test", "test.tsv", Layout(True, ("a", "b")))
    path = write(tmp_path, "a\tb", "x", "x\ty")
    with pytest.raises(UserError, match="A prediction is due for every row"):
        read_rows(path, TASK, split, skip=True)


@pytest.mark.parametrize("label", ["5.5", "-1", "nan", "five", ""])
def test_scores_are_numbers_within_their_range(label: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\tlabel", f"x\ty\t{label}")
    with pytest.raises(UserError, match="not a number from 0 to 5"):
        read_rows(path, SCORES, PAIR)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"a\tb\tlabel\n", "has no rows"),
        (b"a\tc\tlabel\nx\ty\tyes\n", "no column 'b'; the first line names a, c, label"),
        (b"a\tb\tlabel\nx\t\xff\tyes\n", "line 2: not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_rows(path, TASK, PAIR)


def test_a_layout_without_header_needs_its_width() -> None:
    with pytest.raises(ValueError, match="needs its number of columns"):
        Layout(False, (3,), 1)


def test_an_unknown_split_lists_the_known() -> None:
    with pytest.raises(UserError, match="has no split 'valid2'; it has train, valid, valid1"):
        GLUE["mnli"].split("valid2")


#: First label of each file, and how many have the first class.
FIRST = {
    "rte": ("not_entailment", 1241),
    "mrpc": ("1", 1194),
    "cola": ("1", 2528),
    "sst-2": ("0", 29780),
}


@pytest.mark.parametrize("task", ["rte", "mrpc", "cola", "sst-2", "sts-b"])
def test_official_files_have_the_known_counts_and_labels(task: str, data_folder: Path) -> None:
    found = GLUE[task]
    for split in found.splits:
        rows = read_rows(data_folder / "glue" / found.folder / split.file, found, split)
        assert len(rows) in split.counts
        assert (rows.labels is None) == split.name.startswith("test")
        if split.name == "train" and rows.labels is not None and task in FIRST:
            assert (rows.labels[0], rows.labels.count(found.classes[0])) == FIRST[task]


def test_qnli_has_the_known_counts(data_folder: Path) -> None:
    for name in ("valid", "test"):
        split = GLUE["qnli"].split(name)
        rows = read_rows(data_folder / "glue" / "QNLI" / split.file, GLUE["qnli"], split)
        assert len(rows) in split.counts


@pytest.mark.parametrize(
    ("task", "header", "row", "expected"),
    [
        (
            "mnli",
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
            "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t1\t1n\tfiction\tp\tq\tr\ts\tOne.\tTwo.\tneutral\tneutral",
            (["One."], ["Two."], ["neutral"]),
        ),
        (
            "qqp",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "133273\t213221\t213222\tHow?\tWhy?\t0",
            (["How?"], ["Why?"], ["0"]),
        ),
    ],
)
def test_layouts_of_the_large_tasks(
    task: str, header: str, row: str, expected: tuple[list[str], ...], tmp_path: Path
) -> None:
    rows = read_rows(write(tmp_path, header, row), GLUE[task], GLUE[task].split("train"))
    assert (*rows.texts, rows.labels) == expected


def test_submissions_are_named_and_numbered_as_the_server_wants_them(tmp_path: Path) -> None:
    predictions = ["entailment"] * 3000
    path = write_submission(tmp_path, GLUE["rte"], "test", predictions)
    lines = path.read_text().splitlines()
    assert path.name == "RTE.tsv"
    assert lines[:2] == ["index\tprediction", "0\tentailment"]
    assert lines[-1] == "2999\tentailment"
    names = [split.submission for split in GLUE["mnli"].splits if split.submission]
    assert names == ["MNLI-m.tsv", "MNLI-mm.tsv"]


@pytest.mark.parametrize(
    ("split", "message"),
    [("test", "2 predictions for RTE, whose test set has 3000"), ("valid", "no submission file")],
)
def test_a_submission_that_the_server_refuses(split: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path, GLUE["rte"], split, ["entailment"] * 2)
