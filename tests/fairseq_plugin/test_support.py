"""What is refused, before the first update and with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq.tasks.translation import TranslationTask

from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.support import check_run
from deltasam_fairseq.registry import UnknownName
from tests.support import fairseq_toys as toys


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fp16", "--fp16-no-flatten-grads"), "--fp16 is not supported .* train in fp32"),
        (("--memory-efficient-fp16",), "--fp16 is not supported"),
        (("--bf16",), "--bf16 is not supported"),
        (("--amp",), "--amp is not supported"),
        (("--use-bmuf",), "--use-bmuf is not supported: workers have different weights"),
        (("--zero-sharding", "os"), "--zero-sharding os is not supported"),
        (("--ddp-backend", "slowmo"), "slowmo is not supported"),
        (("--tpu",), "--tpu is not supported"),
    ],
)
def test_settings_that_would_be_wrong_are_refused(
    translation: Path, flags: tuple[str, ...], message: str
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    settings = Sharpness("delta_sam", 0.05, 1e-4, "update", "finite_difference")
    trainer.cfg = toys.config(translation, *toys.TRANSLATION, *flags)
    with pytest.raises(ValueError, match=message):
        check_run(trainer, settings)
    # Without a perturbation there is nothing to get wrong.
    check_run(trainer, Sharpness("none", 0.05, 1e-4, "update", "finite_difference"))
    check_run(trainer, Sharpness("sam", 0.0, 1e-4, "update", "finite_difference"))


def test_building_the_optimizer_checks_the_run(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--amp")
    with pytest.raises(ValueError, match="--amp is not supported"):
        trainer._build_optimizer()


def test_a_task_that_makes_its_data_inside_a_step_is_refused(translation: Path) -> None:
    class OnlineBackTranslationTask(TranslationTask):  # the name is what counts
        pass

    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    trainer.task.__class__ = OnlineBackTranslationTask
    with pytest.raises(ValueError, match="generates its training data inside train_step"):
        trainer._build_optimizer()


def test_sparse_gradients_are_refused(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    trainer.get_model().encoder.embed_tokens.sparse = True
    with pytest.raises(ValueError, match=r"embedding encoder.embed_tokens has sparse gradients"):
        trainer._build_optimizer()


UNKNOWN = (
    "--task translation --source-lang src --target-lang tgt --arch transformer --criterion model"
).split() + toys.TINY


def test_delta_sam_needs_a_reader_and_sam_does_not(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *UNKNOWN)
    with pytest.raises(UnknownName, match="none is known for ModelCriterion"):
        trainer._build_optimizer()
    for method in ("sam", "per_instance", "none"):
        toys.make_trainer(translation, *UNKNOWN, "--sam-method", method)._build_optimizer()


def test_a_criterion_with_trainable_parameters(translation: Path) -> None:
    """They belong to the weights: perturbed, restored and trained with the model's."""
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-method", "sam")
    criterion = trainer.get_criterion()
    criterion.scale = torch.nn.Parameter(torch.ones(()))
    forward, seen = criterion.forward, []

    def scaled(model: object, sample: object, reduce: bool = True) -> object:
        loss, size, logging_output = forward(model, sample, reduce)
        seen.append(float(criterion.scale.detach()))
        return loss * criterion.scale, size, logging_output

    criterion.forward = scaled
    trainer.reinitialize()
    before = float(criterion.scale.detach())
    trainer.train_step(toys.batches(trainer)[:1])
    assert seen[0] == before
    assert seen[1] != before, "the criterion's parameter was not perturbed"
    assert float(criterion.scale.detach()) != before, "the criterion's parameter did not train"
