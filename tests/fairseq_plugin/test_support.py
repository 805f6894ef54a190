"""What is refused, before the first update and with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq.tasks.translation import TranslationTask

from deltasam_fairseq.fairseq_plugin import support
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.support import check_run
from deltasam_fairseq.registry import UnknownName
from tests.fairseq_plugin.matrix import REFUSED
from tests.support import fairseq_toys as toys


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_that_would_be_wrong_are_refused(translation: Path, setting: str) -> None:
    flags, message = REFUSED[setting]
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    trainer.cfg = toys.config(translation, *toys.TRANSLATION, *flags)
    for method in ("sam", "delta_sam", "per_instance"):
        with pytest.raises(ValueError, match=message):
            check_run(trainer, Sharpness(method))
    # Without a perturbation there is nothing to get wrong.
    check_run(trainer, Sharpness("none"))
    check_run(trainer, Sharpness("sam", rho=0.0))


def test_every_refusal_is_tested() -> None:
    tested = " ".join(message for _, message in REFUSED.values())
    for name, _, _ in support._SETTINGS:
        assert name in tested, name


def test_building_the_optimizer_checks_the_run(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--use-bmuf")
    with pytest.raises(ValueError, match="--use-bmuf is not supported"):
        trainer._build_optimizer()


def test_quantization_noise_on_blocks_is_refused(translation: Path) -> None:
    """The hook of fairseq assigns the weights anew, masked and scaled, in every forward pass."""
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--quant-noise-pq", "0.1")
    with pytest.raises(ValueError, match="--quant-noise-pq is not supported: .* overwrites"):
        trainer._build_optimizer()
    toys.make_trainer(
        translation, *toys.TRANSLATION, "--quant-noise-pq", "0.1", "--sam-method", "none"
    )._build_optimizer()


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


def test_what_cannot_be_batched_stops_at_start_up_if_batches_are_asked_for(
    translation: Path,
) -> None:
    flags = ("--sam-method", "per_instance", "--sam-per-instance-engine")
    cases = (
        (UNKNOWN, "none is known for ModelCriterion"),
        ([*toys.TRANSLATION, "--sam-adaptive"], "adaptive neighbourhoods"),
    )
    for toy, reason in cases:
        with pytest.raises(ValueError, match=f"(?s)engine batched: .*{reason}.*; or pass auto"):
            toys.make_trainer(translation, *toy, *flags, "batched")._build_optimizer()
        toys.make_trainer(translation, *toy, *flags, "auto")._build_optimizer()
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags, "batched")

    class OwnStep(TranslationTask):
        def train_step(self, *args: object, **kwargs: object) -> object:
            return super().train_step(*args, **kwargs)

    trainer.task.__class__ = OwnStep
    with pytest.raises(
        ValueError, match=r"train_step is not fairseq's own, but .*OwnStep\.train_step"
    ):
        trainer._build_optimizer()
