"""The entry ``python -m deltasam_fairseq.inference``, and a checkpoint loaded for its programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from deltasam_fairseq.inference.__main__ import main  # noqa: E402
from deltasam_fairseq.plugin_path import plugin_dir  # noqa: E402
from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402

pytestmark = pytest.mark.fairseq


@pytest.mark.parametrize("typed", [[], ["translate"]])
def test_a_program_that_is_not_there(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["inference", *typed])
    with pytest.raises(SystemExit, match="is no program; one of embed, generate, predict, risk"):
        main()


@pytest.mark.parametrize("head", ["sentence_classification_head", "mine"])
def test_predictions_are_those_of_the_model_without_dropout(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = fairseq_data.write_prediction_data(tmp_path / "data")
    trainer = toys.make_trainer(data, *toys.BERT, "--classification-head-name", head)
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(tmp_path / "model.pt"), {"train_iterator": {"epoch": 1}})
    out = tmp_path / "logits.json"
    arguments = ["predict", str(data), "--path", str(tmp_path / "model.pt"), "--split", "train"]
    arguments += ["--out", str(out), "--user-dir", str(plugin_dir()), "--cpu", "--batch-size", "7"]
    monkeypatch.setattr(sys, "argv", ["inference", *arguments])
    main()
    written = json.loads(out.read_text())
    assert written["ids"] == list(range(48))
    dataset = trainer.task.dataset("train")
    batch = dataset.collater([dataset[number] for number in range(48)])
    order = batch["id"].argsort()
    with torch.no_grad():
        expected, _ = trainer.model.eval()(**batch["net_input"], classification_head_name=head)
    torch.testing.assert_close(
        torch.tensor(written["logits"]), expected[order], atol=1e-5, rtol=1e-5
    )
