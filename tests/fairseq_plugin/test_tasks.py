"""The tasks that fairseq ships: they train with every method, or are refused with the reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import fairseq
import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY
from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin import support
from deltasam_fairseq.registry import UnknownName
from tests.fairseq_plugin import task_data
from tests.fairseq_plugin.task_runs import TASKS, Broken, Needs, Trains
from tests.support import fairseq_data
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits

DIRECTIONS = (
    "--task multilingual_translation --lang-pairs src-tgt,tgt-src --share-decoders "
    "--arch multilingual_transformer --ddp-backend legacy_ddp"
).split() + toys.TINY

MULTILINGUAL = [
    *DIRECTIONS,
    *"--criterion label_smoothed_cross_entropy --label-smoothing 0.1".split(),
]

LEVENSHTEIN = (
    "--task translation_lev --source-lang src --target-lang tgt --noise full_mask "
    "--arch nonautoregressive_transformer --criterion nat_loss --share-all-embeddings "
    "--apply-bert-init --pred-length-offset --length-loss-factor 0.1 --label-smoothing 0.1"
).split() + toys.TINY


@pytest.fixture(scope="session")
def two_directions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("directions"))


def test_several_directions_cannot_be_grouped_by_loss(two_directions: Path) -> None:
    groups = ("--sam-groups", "3", "--sam-group-by")
    toys.trained(two_directions, *MULTILINGUAL, *groups, "random", freq=2)
    with pytest.raises(ValueError, match=r"trains by .*train_step; use --sam-group-by random"):
        toys.make_trainer(two_directions, *MULTILINGUAL, *groups, "loss").optimizer  # noqa: B018


@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_multilingual_translation(two_directions: Path, method: str, scope: str) -> None:
    """One step calls the criterion once per language pair, on a model of its own."""
    flags = (*MULTILINGUAL, "--sam-scope", scope, "--sam-method", method, "--lr", "0")
    trainer = toys.make_trainer(two_directions, *flags)
    before = toys.parameters(trainer)
    samples = toys.batches(trainer)[:4]
    logs = toys.updates(trainer, [samples[:2], samples[2:]])
    assert_same_bits(toys.parameters(trainer), before)
    for log in logs:
        assert log["sharpness"] > 0
        assert log["sam_fallback"] == 0
        assert "src-tgt:loss" not in log or log["src-tgt:loss"] > 0


def test_multilingual_uniform_weights_are_sam(two_directions: Path) -> None:
    sam, uniform = (
        toys.trained(two_directions, *MULTILINGUAL, *flags, count=2, freq=2)[0]
        for flags in (("--sam-method", "sam"), ("--sam-estimator", "uniform"))
    )
    assert_close(toys.parameters(uniform), toys.parameters(sam), rtol=2e-4, atol=2e-5)


def test_per_instance_takes_the_sentences_of_every_language_pair(
    two_directions: Path, float64: torch.dtype
) -> None:
    """Each with its own perturbation: the gradient is that of one update per sentence."""
    flags = [*DIRECTIONS, "--criterion", "precise_cross_entropy", "--dropout", "0", "--lr", "0.05"]
    flags += ["--sam-method", "per_instance", "--sam-inner", "sgd", "--batch-size", "3"]
    trainer = toys.make_trainer(two_directions, *flags, dtype=float64)
    (sample,) = toys.batches(trainer)[:1]
    before = toys.parameters(trainer)
    (log,) = toys.updates(trainer, [[sample]])
    together = {n: p - before[n] for n, p in toys.parameters(trainer).items()}
    assert log["sharpness"] > 0
    single: dict[str, torch.Tensor] = {}
    dataset = trainer.task.dataset("train").datasets
    tokens = sum(batch["ntokens"] for batch in sample.values())
    for pair, batch in sample.items():
        for number in batch["id"].tolist():
            alone = toys.make_trainer(two_directions, *flags, dtype=float64)
            one = dataset[pair].collater([dataset[pair][number]])
            other = next(name for name in sample if name != pair)
            alone.train_step([{pair: one, other: None}])
            share = one["ntokens"] / tokens
            for name, value in toys.parameters(alone).items():
                single[name] = single.get(name, 0) + share * (value - before[name])
    assert_close(together, single, rtol=1e-6, atol=1e-9)


def test_noise_that_a_task_draws_inside_its_step_is_replayed(translation: Path) -> None:
    """With another noise in the second pass the losses would differ by far more."""
    flags = (*LEVENSHTEIN, "--sam-method", "sam", "--sam-rho", "1e-6")
    trainer = toys.make_trainer(translation, *flags)
    logs = toys.updates(trainer, [[s] for s in toys.batches(trainer)[:3]])
    for log in logs:
        assert 0 < abs(log["sharpness"]) < 1e-3
        assert log["loss"] > 1


METHODS = ("sam", "delta_sam", "per_instance")
OLD = fairseq.__version__ == "0.12.2"
# fairseq 0.12.2 has not got these, or they fail or train otherwise: the table is of 0.12.3.1.
CHANGED = {
    *("cross_lingual_lm", "denoising", "legacy_masked_lm", "multilingual_denoising"),
    *("span_masked_lm", "speech_dlm_task", "speech_to_speech", "translation_from_pretrained_xlm"),
}


@pytest.fixture(scope="session")
def task_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


def trainer_of(name: str, run: Trains | Broken, root: Path, *flags: str) -> Trainer:
    flags = ("--task", name, *run.flags.split(), "--batch-size", "4", *flags)
    if run.data is not None:
        return toys.make_trainer(task_data.folder_of(run.data, root), *flags)
    # These tasks know no folder of data.
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, toys.flags(flags))
    return toys.make_trainer(root, cfg=convert_namespace_to_omegaconf(args))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_trains_or_is_refused(name: str, task_root: Path) -> None:
    run = TASKS[name]
    if OLD and name in CHANGED:
        pytest.skip("the table is that of fairseq 0.12.3.1")
    if isinstance(run, Needs):
        if importlib.util.find_spec(run.package) is not None:
            pytest.skip(f"{run.package} is installed: say what {name} does with it")
        return
    if isinstance(run, Broken):
        with pytest.raises(Exception, match=".*") as broken:  # noqa: PT011  (the text is compared)
            trainer = trainer_of(name, run, task_root, "--optimizer", "adam")
            trainer.save_checkpoint = lambda *a, **k: None
            trainer.train_step(toys.batches(trainer)[:1])
        assert f"{broken.type.__name__}: {broken.value}".startswith(run.error)
        return
    for method in METHODS:
        trainer = trainer_of(name, run, task_root, "--sam-method", method)
        samples = toys.batches(trainer)[:2]
        before = toys.parameters(trainer)
        if method in run.refused:
            trainer.save_checkpoint = lambda *a, **k: None  # no crash.pt
            with pytest.raises((ValueError, UnknownName)) as refused:
                trainer.train_step(samples[:1])
            assert run.refused[method] in str(refused.value)
            assert_same_bits(toys.parameters(trainer), before)
            continue
        logs = toys.updates(trainer, [[sample] for sample in samples])
        assert trainer.get_num_updates() == 2
        assert all(log["sharpness"] > 0 for log in logs)
        assert any(not torch.equal(p, before[n]) for n, p in toys.parameters(trainer).items())


def test_every_task_of_fairseq_is_classified() -> None:
    shipped = {n for n, task in TASK_REGISTRY.items() if task.__module__.startswith("fairseq.")}
    assert shipped < set(TASKS) if OLD else shipped == set(TASKS)


def test_reasons_of_refusal_are_of_tasks() -> None:
    assert {TASK_REGISTRY["online_backtranslation"].__name__} == set(support.TASKS)
