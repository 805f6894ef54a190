"""Tasks that bring a ``train_step`` of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq.tasks import TASK_REGISTRY, FairseqTask

from deltasam_fairseq.fairseq_plugin.support import TASKS
from tests.support import fairseq_data
from tests.support import fairseq_toys as toys

MULTILINGUAL = (
    "--task multilingual_translation --lang-pairs src-tgt,tgt-src --share-decoders "
    "--arch multilingual_transformer --criterion label_smoothed_cross_entropy "
    "--label-smoothing 0.1 --ddp-backend legacy_ddp"
).split() + toys.TINY

LEVENSHTEIN = (
    "--task translation_lev --source-lang src --target-lang tgt --noise full_mask "
    "--arch nonautoregressive_transformer --criterion nat_loss --share-all-embeddings "
    "--apply-bert-init --pred-length-offset --length-loss-factor 0.1 --label-smoothing 0.1"
).split() + toys.TINY


@pytest.fixture(scope="session")
def two_directions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("directions"))


@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_multilingual_translation(two_directions: Path, method: str, scope: str) -> None:
    """One step calls the criterion once per language pair, on a model of its own."""
    flags = (*MULTILINGUAL, "--sam-scope", scope, "--sam-method", method, "--lr", "0")
    trainer = toys.make_trainer(two_directions, *flags)
    before = toys.parameters(trainer)
    samples = toys.batches(trainer)[:4]
    logs = toys.updates(trainer, [samples[:2], samples[2:]])
    for name, value in toys.parameters(trainer).items():
        assert torch.equal(value, before[name]), name
    for log in logs:
        assert log["sharpness"] > 0
        assert log["sam_fallback"] == 0
        assert "src-tgt:loss" not in log or log["src-tgt:loss"] > 0


def test_multilingual_uniform_weights_are_sam(two_directions: Path) -> None:
    ends = []
    for flags in (("--sam-method", "sam"), ("--sam-estimator", "uniform")):
        trainer = toys.make_trainer(two_directions, *MULTILINGUAL, *flags)
        samples = toys.batches(trainer)[:4]
        toys.updates(trainer, [samples[:2], samples[2:]])
        ends.append(toys.parameters(trainer))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=2e-4, atol=2e-5)


def test_per_instance_refuses_batches_of_several_data_sets(two_directions: Path) -> None:
    trainer = toys.make_trainer(two_directions, *MULTILINGUAL, "--sam-method", "per_instance")
    trainer.save_checkpoint = lambda *a, **k: None
    with pytest.raises(ValueError, match="no tensor 'id'"):
        trainer.train_step(toys.batches(trainer)[:1])


def test_noise_that_a_task_draws_inside_its_step_is_replayed(translation: Path) -> None:
    """With another noise in the second pass the losses would differ by far more."""
    flags = (*LEVENSHTEIN, "--sam-method", "sam", "--sam-rho", "1e-6")
    trainer = toys.make_trainer(translation, *flags)
    logs = toys.updates(trainer, [[s] for s in toys.batches(trainer)[:3]])
    for log in logs:
        assert 0 < abs(log["sharpness"]) < 1e-3
        assert log["loss"] > 1


# What is known of every task with a train_step of its own: that it calls the
# criterion as the stand-in expects, through fairseq's optimizer.
KNOWN = {
    "MultilingualTranslationTask",
    "SemisupervisedTranslationTask",
    "TranslationLevenshteinTask",
    # These add something around the base class's own.
    "AudioClassificationTask",
    "SpeechToSpeechTask",
    "SpeechToTextTask",
}


def test_every_task_of_fairseq_is_known_or_refused() -> None:
    own = {
        next(base for base in task.__mro__ if "train_step" in vars(base)).__name__
        for task in TASK_REGISTRY.values()
    }
    shipped = {name for name in own if name != FairseqTask.__name__}
    assert shipped <= KNOWN | set(TASKS), shipped - KNOWN - set(TASKS)
