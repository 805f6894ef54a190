"""A criterion that owns its sentence losses; the contract is in ``test_sentence_losses``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin.criterions.base import SentenceCriterion, own_losses
from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    SENTENCE_LOSSES,
    SentenceLosses,
    reader_for,
    token_losses,
)
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits


@pytest.fixture
def own() -> Iterator[type[SentenceCriterion]]:
    """The toys' cross entropy as a criterion of the project."""
    known = set(SENTENCE_LOSSES.names())

    class Own(SentenceCriterion):
        def sentence_losses(self, model: Any, sample: Any) -> SentenceLosses:
            criterion = toys.PreciseCrossEntropy.__new__(toys.PreciseCrossEntropy)
            criterion.__dict__.update(self.__dict__)
            return token_losses(criterion, model, sample)

        @staticmethod
        def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
            toys.PreciseCrossEntropy.reduce_metrics(logging_outputs)

    yield Own
    for name in set(SENTENCE_LOSSES.names()) - known:
        del SENTENCE_LOSSES._entries[name]


def trainer_of(data: Path, criterion: type, *flags: str) -> Trainer:
    trainer = toys.make_trainer(data, *toys.PRECISE, *flags)
    trainer.get_criterion().__class__ = criterion
    return trainer


def test_the_loss_is_the_sum_of_the_losses(translation: Path, own: type[SentenceCriterion]) -> None:
    trainer = trainer_of(translation, own)
    criterion, model, sample = (
        trainer.get_criterion(),
        trainer.get_model(),
        toys.batches(trainer)[0],
    )
    assert reader_for(criterion) is own_losses
    model.eval()
    read = own_losses(criterion, model, sample)
    loss, size, _ = criterion(model, sample)
    assert torch.equal(loss, read.losses.sum())
    assert torch.equal(criterion(model, sample, reduce=False)[0], read.losses)
    assert read.losses.shape == (8,)
    assert size == read.sample_size


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_every_method_trains_with_it(
    translation: Path, own: type[SentenceCriterion], method: str
) -> None:
    ends = []
    for criterion in (toys.PreciseCrossEntropy, own):
        trainer = trainer_of(translation, criterion, "--sam-method", method)
        toys.updates(trainer, [toys.batches(trainer)[:1]])
        ends.append(toys.parameters(trainer))
    if method == "sam":
        for name, value in ends[0].items():
            torch.testing.assert_close(ends[1][name], value)
    else:
        assert_same_bits(ends[0], ends[1])


def test_dependent_sentences_are_refused_at_start_up_by_per_instance_alone(
    translation: Path, own: type[SentenceCriterion]
) -> None:
    class Dependent(own):  # type: ignore[valid-type, misc]
        dependence = "the other sentences are its negatives"

    trainer = trainer_of(translation, Dependent, "--sam-method", "per_instance")
    with pytest.raises(
        ValueError,
        match="of Dependent are not independent: the other sentences are its negatives. Use",
    ):
        trainer._build_optimizer()
    for method in ("sam", "delta_sam"):
        trainer_of(translation, Dependent, "--sam-method", method)._build_optimizer()


def test_a_model_without_the_head_is_refused(prediction: Path) -> None:
    trainer = toys.make_trainer(prediction, *toys.BERT, "--optimizer", "adam")
    del trainer.get_model().classification_heads["sentence_classification_head"]
    with pytest.raises(ValueError, match="no classification head 'sentence_classification_head'"):
        trainer.get_criterion()(trainer.get_model(), toys.batches(trainer)[0])
