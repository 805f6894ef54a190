"""The examples run, with tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")

from deltasam_fairseq.choices import METHODS  # noqa: E402
from examples import hf_glue, hf_summarization  # noqa: E402
from tests.hf.test_trainer import SIZES  # noqa: E402

OLD = transformers.__version__ < "5"
learns_a_vocabulary = pytest.mark.skipif(OLD, reason="transformers 4 makes no empty tokenizer")


@pytest.mark.parametrize("method", ["none", "sam", "per_instance"])
def test_mrpc_through_the_trainer(tmp_path: Path, data_folder: Path, method: str) -> None:
    vocabulary = data_folder / "bert_vocab" / "bert-base-uncased-vocab.txt"
    name = "vocab_file" if OLD else "vocab"
    transformers.BertTokenizerFast(**{name: str(vocabulary)}).save_pretrained(tmp_path)
    sizes = {**SIZES, "vocab_size": 30522, "max_position_embeddings": 128}
    config = transformers.BertConfig(**sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    command = ["--data", str(data_folder / "glue"), "--model", str(tmp_path), "--method", method]
    command += ["--max-steps", "2", "--rows", "16", "--out", str(tmp_path / "run")]
    assert 0 <= hf_glue.main(command)["eval_accuracy"] <= 1


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return the arguments for 24 pairs, whose summaries are the first words of the texts."""
    texts = [f"The {n} boats of harbour {n % 5} sailed on day {n % 7} again." for n in range(24)]
    (tmp_path / "source").write_text("\n".join(texts))
    (tmp_path / "target").write_text("\n".join(" ".join(text.split()[:4]) + "." for text in texts))
    files = ["--train-source", str(tmp_path / "source"), "--train-target", str(tmp_path / "target")]
    lengths = ["--target-length", "12", "--min-length", "4"]
    return [*files, *lengths, "--hold-out", "4", "--out", str(tmp_path / "run")]


@learns_a_vocabulary
@pytest.mark.parametrize("method", METHODS)
def test_summaries_through_the_trainer(
    files: list[str], capsys: pytest.CaptureFixture[str], method: str
) -> None:
    sizes = ["--source-length", "32", "--beams", "2", "--max-steps", "3"]
    report = hf_summarization.main([*files, *sizes, "--method", method])
    assert report.n == 4
    *_, row, signature = capsys.readouterr().out.splitlines()
    assert row.startswith(f"| {method} | {report.scores['rouge1'].fmeasure:.2f} | ")
    assert signature == f"4 pairs held out, {report.signature}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--train-source", "none.txt"], "none.txt: no such file"),
        (["--hold-out", "20"], "cannot hold 20 of 24 training pairs out"),
        (["--model", "nowhere"], "nowhere is none"),
        (["--beams", "0"], "'0' is not a whole number"),
        (["--min-length", "13"], "--min-length must be at most --target-length"),
    ],
)
def test_summaries_from_bad_input(
    files: list[str], capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        hf_summarization.main([*files, *changed])
    assert message in capsys.readouterr().err


@learns_a_vocabulary
def test_summaries_with_the_model_of_a_folder(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in hf_summarization.small_bart(["The boats sailed."], positions=32):
        part.save_pretrained(tmp_path / "bart")
    command = [*files, "--model", str(tmp_path / "bart"), "--method", "none", "--max-steps", "1"]
    assert hf_summarization.main([*command, "--source-length", "32"]).n == 4
    with pytest.raises(SystemExit):
        hf_summarization.main([*command, "--source-length", "33"])
    assert "has 32 positions" in capsys.readouterr().err
