"""Steps that are made of steps: what is plain, what stands in, and how makers compose."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion

import deltasam_fairseq
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.fairseq_plugin import hook
from deltasam_fairseq.fairseq_plugin.embedding_noise import embedding_noise, embeddings_shape
from deltasam_fairseq.fairseq_plugin.passes import Step, is_plain, standing_in
from deltasam_fairseq.fairseq_plugin.sharpness.samples import containers_copied
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close

PACKAGE = str(Path(deltasam_fairseq.__file__).parent)
EXACT = ("--dropout", "0", "--sam-inner", "sgd", "--lr", "0.05")


def own_frames(functions: set[str]) -> list[str]:
    """List the package's functions between here and fairseq's trainer, innermost first."""
    found = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            found.append(code.co_qualname if hasattr(code, "co_qualname") else code.co_name)
            functions.add(code.co_name)
            if code.co_filename == hook.__file__:
                return found
        frame = frame.f_back
    return []


@pytest.mark.parametrize(("extra", "most"), [((), 8), (("--freelb-steps", "2"), 10)])
@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize(
    ("flags", "criterion"),
    [
        (toys.TRANSLATION, LabelSmoothedCrossEntropyCriterion),
        (toys.PREDICTION, SentencePredictionCriterion),
    ],
)
def test_a_probe_is_a_few_functions_away_from_the_hook(
    translation: Path,
    prediction: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    criterion: type,
    scope: str,
    extra: tuple[str, ...],
    most: int,
) -> None:
    """Eight at most, and ten where FreeLB stands between."""
    forward, stacks, names = criterion.forward, [], set[str]()  # type: ignore[attr-defined]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        stacks.append(own_frames(names))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(criterion, "forward", counted)
    data = translation if flags is toys.TRANSLATION else prediction
    trainer = toys.make_trainer(data, *flags, "--sam-scope", scope, *extra)
    toys.updates(trainer, [toys.batches(trainer)[:1]])
    assert {"probe", "finite_difference", "ascend"} <= names
    deepest = max(stacks, key=len)
    assert len(deepest) <= most, deepest


def test_plain_is_asked_of_the_object(translation: Path) -> None:
    task = toys.make_trainer(translation, *toys.TRANSLATION).task
    own = task.train_step
    assert is_plain(own)
    task.train_step = own  # the method itself on the object
    assert is_plain(task.train_step)
    task.train_step = functools.partial(own)
    assert not is_plain(task.train_step)


def test_stand_ins_leave_an_object_as_it_was() -> None:
    class Owner:
        def one(self) -> int:
            return 1

    owner, other = Owner(), Owner()
    other.one = lambda: 3  # type: ignore[method-assign]
    with pytest.raises(KeyError), standing_in(owner, one=lambda: 2), standing_in(other, one=int):
        assert (owner.one(), other.one()) == (2, 0)
        raise KeyError
    assert (owner.one(), other.one()) == (1, 3)
    assert vars(owner) == {}


def twice(step: Step, calls: list[int]) -> Step:
    """Run a step twice with half its loss, as FreeLB would with noise that is zero."""

    def made(sample: Any, model: Any, criterion: Any, *args: Any, **kwargs: Any) -> Any:
        start = RandomState.capture(model.parameters())

        def halved(model: Any, sample: Any) -> Any:
            loss, size, logging_output = criterion(model, sample)
            return loss / 2, size, logging_output

        noise = torch.zeros(embeddings_shape(model, sample["net_input"]["src_tokens"]))
        losses = []
        for _ in range(2):
            calls.append(1)
            start.replay()
            with embedding_noise(model, noise):
                result = step(containers_copied(sample), model, halved, *args, **kwargs)
            losses.append(result[0].detach())
        return sum(losses), *result[1:]

    return made


@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_makers_compose(translation: Path, float64: torch.dtype, method: str, scope: str) -> None:
    """``sharpness(twice(task.train_step))`` is what sharpness is, pass for pass."""
    calls: list[int] = []
    ends, logs = [], []
    for between in (False, True):
        flags = (*EXACT, "--sam-method", method, "--sam-scope", scope)
        trainer = toys.make_trainer(translation, *toys.PRECISE, *flags, dtype=float64)
        if between:
            trainer.task.train_step = twice(trainer.task.train_step, calls)
        samples = toys.batches(trainer)[:4]
        logs.append(toys.updates(trainer, [samples[:2], samples[2:]]))
        ends.append(toys.parameters(trainer))
    assert len(calls) >= 2 * 2 * len(samples)  # no pass goes around it
    assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-9)
    for plain, ours in zip(*logs, strict=True):
        assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-6)
        assert ours["sharpness"] == pytest.approx(plain["sharpness"], rel=1e-4)


def test_an_update_that_amp_tries_again_is_made_once(
    translation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-method", "sam")
    task, depths, steps = trainer.task, [], []
    own, optimizer_step = task.train_step, task.optimizer_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return own(*args, **kwargs)

    def again(*args: Any, **kwargs: Any) -> Any:
        depths.append(task.train_step)
        if len(depths) == 1:
            trainer.zero_grad()
            return trainer.train_step(samples)
        return optimizer_step(*args, **kwargs)

    task.train_step = counted
    monkeypatch.setattr(task, "optimizer_step", again)
    samples = toys.batches(trainer)[:2]
    trainer.train_step(samples)
    assert depths[0] is depths[1]
    assert len(steps) == 2 * 4
    assert task.train_step is counted
