"""What hard sentences are for: a model that has learned the rule shows who breaks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from deltasam_fairseq.data.labelled_sentences import PreparedSentences  # noqa: E402
from deltasam_fairseq.errors import UserError  # noqa: E402
from deltasam_fairseq.inference.checkpoint import Checkpoint  # noqa: E402
from deltasam_fairseq.inference.risk import measure  # noqa: E402
from deltasam_fairseq.recipes import hard_sentences as hard  # noqa: E402
from deltasam_fairseq.recipes.catalogue import find_recipe  # noqa: E402
from deltasam_fairseq.recipes.run_folder import RunFolder  # noqa: E402
from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402
from tests.support.prepared_data import finished_data  # noqa: E402

FLIPPED = [3, 10]


def test_flipped_labels_come_first(tmp_path: Path) -> None:
    """The label says whether the first word is one of ten; two of 16 say the opposite."""
    data = fairseq_data.write_prediction_data(tmp_path, train=240, flipped=FLIPPED)
    flags = ("--dropout", "0", "--attention-dropout", "0", "--clip-norm", "1")
    trainer = toys.make_trainer(
        data, *toys.BERT, *flags, "--batch-size", "60", "--sam-method", "none"
    )
    for _ in range(8):
        for sample in toys.batches(trainer):
            trainer.train_step([sample])
    cpu = torch.device("cpu")
    checkpoint = Checkpoint(trainer.get_model().eval(), trainer.task, trainer.cfg, cpu)
    _, scores = measure(checkpoint, "valid", rho=0.05)
    for column in ("norms", "risks", "losses"):
        order = sorted(range(16), key=lambda row: -scores[column][row])
        assert sorted(order[: len(FLIPPED)]) == FLIPPED, column


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Let the program have scored two sentences in a run's folder."""
    run = RunFolder(tmp_path / "run")

    def measured(_data: Any, folder: RunFolder, split: str, *_: Any, **__: Any) -> None:
        place = folder.predictions(split) / "adversarial_risk_sentences.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        columns = {"norms": [1.0, 2.0], "risks": [4.0, 3.0], "losses": [0.5, 0.6]}
        place.write_text(json.dumps({"ids": [0, 1], **columns}))

    monkeypatch.setattr(hard, "measure_risk", measured)
    return run


def test_pairs_are_shown_as_text_in_the_order_asked_for(tmp_path: Path, scored: RunFolder) -> None:
    data = finished_data(tmp_path / "data")

    def shown(by: str, top: int) -> list[dict[str, Any]]:
        found = hard.hard_sentences(
            find_recipe("text"), data, scored, "valid", by=by, top=top, rho=0.05, cpu=True
        )
        return [sentence.as_json() for sentence in found]

    assert [one["number"] for one in shown("norm", 5)] == [2, 1]
    (first,) = shown("risk", 1)
    assert first == {
        **{"number": 1, "norm": 1.0, "risk": 4.0, "loss": 0.5, "prediction": None},
        **{"texts": tuple(data.texts("valid", "source")[:1]), "answer": "Get the leaf of a tree."},
    }
    with pytest.raises(UserError, match="has no split 'dev'; it has train, valid, test"):
        find_recipe("text").kind.examples_of(
            find_recipe("text"), data, scored, "dev", cpu=True, say=print
        )


def test_views_of_sentences_have_no_losses_of_their_own(scored: RunFolder) -> None:
    mirror = find_recipe("mirror")
    nothing = PreparedSentences(scored.path, {})
    with pytest.raises(UserError, match="mirror has no hard sentences: the loss of one"):
        hard.hard_sentences(mirror, nothing, scored, "train", by="norm", top=1, rho=0.05, cpu=True)
