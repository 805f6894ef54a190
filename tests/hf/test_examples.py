"""The examples run, with tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")

from examples import hf_glue  # noqa: E402
from tests.hf.test_trainer import SIZES  # noqa: E402


@pytest.mark.parametrize("method", ["none", "sam", "per_instance"])
def test_mrpc_through_the_trainer(tmp_path: Path, data_folder: Path, method: str) -> None:
    vocabulary = data_folder / "bert_vocab" / "bert-base-uncased-vocab.txt"
    tokenizer = transformers.BertTokenizerFast(vocab=str(vocabulary))
    tokenizer.save_pretrained(tmp_path)
    sizes = {**SIZES, "vocab_size": 30522, "max_position_embeddings": 128}
    config = transformers.BertConfig(**sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    command = ["--data", str(data_folder / "glue"), "--model", str(tmp_path), "--method", method]
    command += ["--max-steps", "2", "--rows", "16", "--out", str(tmp_path / "run")]
    assert 0 <= hf_glue.main(command)["eval_accuracy"] <= 1
