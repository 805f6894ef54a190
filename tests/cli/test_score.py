import json
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.cli.score import METRICS

Capture = pytest.CaptureFixture[str]
VARIANTS = {"rouge1", "rouge2", "rougeL", "rougeLsum"}


def write(path: Path, *lines: str) -> str:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return str(path)


def as_json(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["score", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def as_text(capsys: Capture, *arguments: str) -> list[str]:
    assert main(["score", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def complaint(capsys: Capture, *arguments: str) -> str:
    assert main(["score", *arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    hypotheses = write(tmp_path / "h", "the children ran . they won", "a b", "")
    references = write(tmp_path / "r", "the child runs . they win", "a b c", "x")
    return hypotheses, references


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_explains_itself(metric: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["score", metric, "--help"])
    assert stop.value.code == 0
    assert (METRICS[metric].__doc__ or "").splitlines()[0] in capsys.readouterr().out


def test_rouge_has_these_keys_and_no_others(pair: tuple[str, str], capsys: Capture) -> None:
    found = as_json(capsys, "rouge", *pair)
    assert found.keys() == {*VARIANTS, "n", "signature"}
    for name in VARIANTS:
        assert found[name].keys() == {"precision", "recall", "fmeasure"}
    assert found["n"] == 3


def test_rouge_like_the_perl_program(
    pair: tuple[str, str], capsys: Capture, tmp_path: Path
) -> None:
    found = as_json(capsys, "rouge", *pair, "--like", "rouge-1.5.5")
    # the child; 5 words, of which ran and won are too short for a stem; a b of a b c; nothing
    assert found["rouge1"]["recall"] == pytest.approx((60 + 66.667 + 0) / 3)
    assert found["rougeL"] == found["rougeLsum"]
    assert "|like:rouge-1.5.5|stemmer:rouge-1.5.5|exceptions:5930-" in found["signature"]
    none = as_json(capsys, "rouge", *pair, "--like", "rouge-1.5.5", "--exceptions", "none")
    assert none["rouge1"]["recall"] == pytest.approx((40 + 66.667 + 0) / 3)
    for name in ("adj", "adv", "noun", "verb"):
        write(tmp_path / f"{name}.exc", "children child")
    own = as_json(capsys, "rouge", *pair, "--like", "rouge-1.5.5", "--exceptions", str(tmp_path))
    assert own["rouge1"] == found["rouge1"]
    assert own["signature"] != found["signature"]


def test_rouge_says_where_it_looked_for_exceptions(pair: tuple[str, str], capsys: Capture) -> None:
    error = complaint(capsys, "rouge", *pair, "--like", "rouge-1.5.5", "--exceptions", "nowhere")
    assert "nowhere/adj.exc: no such file" in error


def test_line_breaks_within_a_line_of_a_file(tmp_path: Path, capsys: Capture) -> None:
    hypotheses = write(tmp_path / "h", "b one<q>a two")
    references = write(tmp_path / "r", "a two <q> b one")
    assert as_json(capsys, "rouge", hypotheses, references)["rougeLsum"]["fmeasure"] == 100
    other = as_json(capsys, "rouge", hypotheses, references, "--line-break", "<n>")
    assert other["rougeLsum"]["fmeasure"] < 100
    assert other["rougeLsum"] != other["rouge1"]


@pytest.mark.parametrize(
    ("split", "full"),
    [("newline", False), ("sentences", True), ("ptb", True), ("files2rouge", True)],
)
def test_rouge_splits(split: str, full: bool, tmp_path: Path, capsys: Capture) -> None:
    hypotheses = write(tmp_path / "h", "b one . a two .")
    references = write(tmp_path / "r", "a two . b one .")
    found = as_json(capsys, "rouge", hypotheses, references, "--split", split)
    assert (found["rougeLsum"]["fmeasure"] == 100) == full
    assert f"|split:{split}|" in found["signature"]


@pytest.mark.parametrize(
    ("mark", "options", "warned"),
    [
        (" ", (), True),
        (" ", ("--json",), True),
        (" ", ("--like", "rouge-1.5.5"), True),
        (" ", ("--split", "ptb"), True),  # not for raw text: it finds no end there
        (" ", ("--split", "sentences"), False),
        ("<q>", (), False),
        ("<q>", ("--line-break", "<n>"), False),  # it has no end before white space
    ],
)
def test_rouge_of_sentences_that_nobody_told_apart_is_warned_of_once(
    mark: str, options: tuple[str, ...], warned: bool, tmp_path: Path, capsys: Capture
) -> None:
    lines = [mark.join(("It was late.", "They won.", "Nobody saw.")) for _ in range(4)]
    hypotheses, references = write(tmp_path / "h", *lines), write(tmp_path / "r", *lines)
    against = ("--against", hypotheses, "--trials", "10")
    assert main(["score", "rouge", hypotheses, references, *against, *options]) == 0
    out, err = capsys.readouterr()
    assert err.count("--split sentences") == err.count("ROUGE-Lsum") == err.count("\n") == warned
    if "--json" in options:
        assert json.loads(out).keys() == {*VARIANTS, "n", "signature", "against", "test"}


def test_rouge_warns_of_the_other_system_too(tmp_path: Path, capsys: Capture) -> None:
    references = write(tmp_path / "r", "It was late.<q>They won.")
    other = write(tmp_path / "o", "It was late. They won.")
    assert main(["score", "rouge", references, references]) == 0
    assert capsys.readouterr().err == ""
    assert main(["score", "rouge", references, references, "--against", other]) == 0
    assert capsys.readouterr().err.count("many hypotheses have several sentences") == 1


def test_rouge_words(tmp_path: Path, capsys: Capture) -> None:
    hypotheses, references = write(tmp_path / "h", "I can't"), write(tmp_path / "r", "I ca n't")
    assert as_json(capsys, "rouge", hypotheses, references)["rouge1"]["recall"] == 50
    found = as_json(capsys, "rouge", hypotheses, references, "--tokenize", "ptb")
    assert found["rouge1"]["recall"] == 100
    assert "|tok:ptb|" in found["signature"]


def test_rouge_intervals_appear_when_asked_for(pair: tuple[str, str], capsys: Capture) -> None:
    options = ("--bootstrap", "--resamples", "50", "--seed", "7")
    found = as_json(capsys, "rouge", *pair, *options)
    assert found == as_json(capsys, "rouge", *pair, *options)
    low, high = found["confidence_intervals_95"]["rouge1"]["fmeasure"]
    assert low <= found["rouge1"]["fmeasure"] <= high
    assert found["signature"].endswith("|bs:50|seed:7")
    assert "95 % confidence interval of F" in as_text(capsys, "rouge", *pair, *options)


def test_rouge_against_another_system(
    pair: tuple[str, str], capsys: Capture, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", "", "", "x")
    found = as_json(capsys, "rouge", *pair, "--against", other, "--trials", "100")
    assert found["test"] == "paired-ar|trials:100|seed:12345"
    here, there = (
        as_json(capsys, "rouge", path, pair[1])["rouge2"]["fmeasure"] for path in (pair[0], other)
    )
    assert found["against"]["rouge2"]["fmeasure"]["difference"] == pytest.approx(here - there)
    assert 0 < found["against"]["rouge2"]["fmeasure"]["p"] <= 1
    lines = as_text(capsys, "rouge", *pair, "--against", other, "--trials", "100")
    assert any(line.startswith("rouge2") and "p = " in line for line in lines)
    short = write(tmp_path / "short", "a")
    said = complaint(capsys, "rouge", *pair, "--against", short)
    assert f"{short}: 1 hypotheses but 3 references" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--resamples 9", "--resamples is for --bootstrap, which is not given"),
        ("--trials 9 --bootstrap", "--trials is for --against, which is not given"),
        ("--seed 0", "--seed is for --bootstrap or --against, which is not given"),
    ],
)
def test_rouge_settings_of_what_is_not_asked_for(
    words: str, message: str, pair: tuple[str, str], capsys: Capture
) -> None:
    assert message in complaint(capsys, "rouge", *pair, *words.split())


def test_rouge_of_each_pair(pair: tuple[str, str], capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "examples.jsonl"
    means = as_json(capsys, "rouge", *pair, "--per-example", str(out))
    examples = [json.loads(line) for line in out.read_text().splitlines()]
    assert [example["line"] for example in examples] == [1, 2, 3]
    recalls = [example["rouge2"]["recall"] for example in examples]
    assert sum(recalls) / 3 == pytest.approx(means["rouge2"]["recall"])
    nowhere = str(tmp_path / "no" / "where")
    assert "No such file" in complaint(capsys, "rouge", *pair, "--per-example", nowhere)


@pytest.mark.parametrize("like", ["rouge-score", "rouge-1.5.5"])
def test_rouge_of_odd_characters_is_defined(like: str, tmp_path: Path, capsys: Capture) -> None:
    odd = ["a\u2028b", "a\rb", "\ufeffa b", "a\0b", "a\u0085b", "a\u00a0b", "\u200ba\u200bb"]
    hypotheses = write(tmp_path / "h", *odd)
    references = write(tmp_path / "r", *["a b"] * len(odd))
    found = as_json(capsys, "rouge", hypotheses, references, "--like", like)
    assert {found[name]["fmeasure"] for name in VARIANTS} == {100}
    assert found["n"] == len(odd)


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a"], ["a", "b"], "1 hypotheses but 2 references"),
        (["a", "b"], ["a", ""], "line 2: the reference is empty"),
        (["a", "b"], ["a", "<q>"], "line 2: the reference is empty"),
    ],
)
def test_rouge_complains(
    hypotheses: list[str], references: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    paths = write(tmp_path / "h", *hypotheses), write(tmp_path / "r", *references)
    assert message in complaint(capsys, "rouge", *paths)


def test_bleu(tmp_path: Path, capsys: Capture) -> None:
    hypotheses = write(tmp_path / "h", "the cat sat on the mat", "The end")
    one = write(tmp_path / "one", "the cat sat on a mat", "the end")
    two = write(tmp_path / "two", "the cat sat on the mat", "")
    found = as_json(capsys, "bleu", hypotheses, one, two)
    assert found.keys() == {"bleu", "chrf", "ter", "n"}
    assert "|nrefs:var|" in found["bleu"]["signature"]  # the second line of two is blank
    lower = as_json(capsys, "bleu", hypotheses, one, two, "--lowercase", "--tokenize", "none")
    assert lower["bleu"]["score"] == pytest.approx(100)
    lines = as_text(capsys, "bleu", hypotheses, one)
    assert [line.split()[0] for line in lines[:3]] == ["bleu", "chrf", "ter"]
    assert lines[-1] == "n = 2"
    short = write(tmp_path / "short", "a")
    assert "1 lines in reference file 1" in complaint(capsys, "bleu", hypotheses, short)


def test_glue(tmp_path: Path, capsys: Capture) -> None:
    predictions, labels = write(tmp_path / "p", *"1101"), write(tmp_path / "l", *"1001")
    assert as_json(capsys, "glue", "mrpc", predictions, labels)["f1"] == pytest.approx(80)
    lines = as_text(capsys, "glue", "MRPC", predictions, labels)
    assert lines[0].split() == ["accuracy", "75.00", "the", "paper's"]
    assert lines[1].split() == ["f1", "80.00"]
    assert lines[-1].startswith("n = 4, glue|task:MRPC|")
    assert "unknown GLUE task 'sst'" in complaint(capsys, "glue", "sst", predictions, labels)
    empty = write(tmp_path / "e", *"11", "", "1")
    assert "line 3: the prediction is ''" in complaint(capsys, "glue", "mrpc", empty, labels)


def test_sts(tmp_path: Path, capsys: Capture) -> None:
    predictions = [write(tmp_path / "p1", "1", "2", "3"), write(tmp_path / "p2", "8", "9")]
    gold = [write(tmp_path / "g1", "0", "", "5"), write(tmp_path / "g2", "1", "4")]
    arguments = ["sts", "--predictions", *predictions, "--gold", *gold]
    found = as_json(capsys, *arguments)
    assert (found["n"], found["spearman"]) == (4, pytest.approx(40))
    assert found["files"].keys() == set(gold)
    assert "files:2|unscored:1" in found["signature"]
    lines = as_text(capsys, *arguments)
    assert lines[0].split()[:5] == ["spearman", "40.00", "all", "4", "pairs:"]
    assert "files of predictions but 2 of" in complaint(capsys, *arguments[:3], "--gold", *gold)
    twice = complaint(capsys, *arguments[:4], "--gold", gold[0], gold[0])
    assert "--gold names a file twice" in twice


def test_seeds_are_aggregated(tmp_path: Path, capsys: Capture) -> None:
    labels = write(tmp_path / "l", *"1111")
    seeds = []
    for number, predictions in enumerate(("1111", "1110", "1000")):
        path = write(tmp_path / f"p{number}", *predictions)
        report = as_json(capsys, "glue", "rte", path, labels)
        seeds.append(write(tmp_path / f"{number}.json", json.dumps(report)))
    found = as_json(capsys, "aggregate", *seeds)
    assert found.keys() == {"accuracy"}
    expected = {"mean": 200 / 3, "median": 75, "max": 100, "min": 25, "std": 38.188, "n": 3}
    assert found["accuracy"] == pytest.approx(expected, abs=1e-3)
    head, row = as_text(capsys, "aggregate", *seeds)
    assert head.split() == ["mean", "median", "max", "min", "std", "n"]
    assert row.split() == ["accuracy", "66.67", "75.00", "100.00", "25.00", "38.19", "3"]
    assert as_text(capsys, "aggregate", seeds[0])[1].split()[-2:] == ["-", "1"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["{", "{}"], "1.json is not JSON"),
        (["[]", "{}"], "1.json: a JSON object is wanted"),
        (["{}", "{}"], "no scores in it"),
        (['{"a": 1, "n": 2}', '{"a": 1, "n": 3}'], "not comparable: n is 2 in one and 3"),
    ],
)
def test_aggregate_complains(
    texts: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    paths = [write(tmp_path / f"{number}.json", text) for number, text in enumerate(texts, 1)]
    assert message in complaint(capsys, "aggregate", *paths)


def test_a_seed_counts_once(tmp_path: Path, capsys: Capture) -> None:
    path = write(tmp_path / "a.json", '{"a": 1}')
    assert "a file is named twice" in complaint(capsys, "aggregate", path, path)


def test_golden_summaries_in_line_aligned_files(
    data_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    lines = (data_folder / "realsumm" / "rouge155_scored.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    hypotheses = write(tmp_path / "h", *("<q>".join(entry["hyp_sents"]) for entry in entries))
    references = write(tmp_path / "r", *("<q>".join(entry["ref_sents"]) for entry in entries))
    out = tmp_path / "examples.jsonl"
    options = ("--like", "rouge-1.5.5", "--per-example", str(out))
    assert as_json(capsys, "rouge", hypotheses, references, *options)["n"] == 376
    for line, entry in zip(out.read_text().splitlines(), entries, strict=True):
        found = json.loads(line)
        for perl, ours in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            published = [
                100 * entry["published"][f"{perl}_{name}"]
                for name in ("precision", "recall", "f_score")
            ]
            assert list(found[ours].values()) == pytest.approx(published, abs=1e-7)
