"""What is scored sentence by sentence adds up to the criterion's own loss, or is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.trainer import Trainer

from deltasam_fairseq.core.pass_state import PassState
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    SENTENCE_LOSSES,
    SentenceLosses,
    sentence_losses_for,
    token_losses,
)
from deltasam_fairseq.fairseq_plugin.sharpness import adding_up
from deltasam_fairseq.fairseq_plugin.sharpness.adding_up import AddingUp
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits

LOOP = ("--sam-method", "per_instance", "--sam-per-instance-engine", "loop")
METHODS = {
    "delta_sam": ("--sam-method", "delta_sam"),
    "norms": ("--sam-method", "delta_sam", "--sam-estimator", "gibbs"),
    "per_instance": ("--sam-method", "per_instance"),
    "the loop": LOOP,
    "groups": ("--sam-method", "sam", "--sam-groups", "2", "--sam-per-instance-engine", "loop"),
}


class Contrastive(CrossEntropyCriterion):
    """Each source's own target among those of the batch: of a batch of one, 0."""

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        hidden = model(**sample["net_input"])[0].mean(1)
        scores = hidden @ hidden.T / 0.1
        wanted = torch.arange(len(hidden))
        loss = F.cross_entropy(scores, wanted, reduction="sum")
        size = len(hidden)
        counts = {"ntokens": sample["ntokens"], "nsentences": size, "sample_size": size}
        return loss, size, {"loss": loss.detach(), **counts}


class MeanOfBatch(CrossEntropyCriterion):
    """The mean over the batch's tokens, with a sample size of one."""

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        loss, size, logging_output = super().forward(model, sample, reduce)
        return loss / size, 1, {**logging_output, "loss": loss.detach() / size, "sample_size": 1}


def trainer_of(data: Path, *flags: str, criterion: type | None = None) -> Trainer:
    trainer = toys.make_trainer(data, *toys.TRANSLATION, *flags)
    trainer.save_checkpoint = lambda *a, **k: None  # no crash.pt
    if criterion is not None:
        trainer.get_criterion().__class__ = criterion
    return trainer


def refused(trainer: Trainer, message: str, *, batches: int = 1) -> None:
    """The first update is refused, and nothing has changed."""
    samples = toys.batches(trainer)[:batches]
    before = {n: v.clone() for n, v in trainer.get_model().state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer.train_step(samples)
    assert_same_bits(trainer.get_model().state_dict(), before)
    assert trainer.get_num_updates() == 0


@pytest.mark.parametrize("criterion", [Contrastive, MeanOfBatch])
def test_the_loop_refuses_losses_that_do_not_add_up(translation: Path, criterion: type) -> None:
    trainer = trainer_of(translation, "--sam-method", "per_instance", criterion=criterion)
    refused(trainer, r"8 sentences scored by themselves have .*would train another .*method sam")


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("criterion", [Contrastive, MeanOfBatch])
def test_groups_that_do_not_add_up_are_refused(
    translation: Path, criterion: type, scope: str, batches: int
) -> None:
    flags = (*METHODS["groups"], "--sam-scope", scope, "--update-freq", str(batches))
    trainer = trainer_of(translation, *flags, criterion=criterion)
    message = r"2 groups scored by themselves have .*would train another .*Use --sam-groups 1"
    refused(trainer, message, batches=batches)


def test_the_loop_refuses_layers_that_mix_sentences(translation: Path) -> None:
    """Batch normalisation in training; in evaluation it mixes nothing."""

    class OverTokens(torch.nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(0, -2)).view_as(x)

    trainer = trainer_of(translation, *LOOP)
    layer = trainer.get_model().encoder.layers[0]
    layer.final_layer_norm = OverTokens(16)
    trainer.reinitialize()
    refused(trainer, "encoder.layers.0.final_layer_norm normalises over the batch's sentences")


@pytest.fixture
def wrong() -> Iterator[type]:
    """A criterion whose registered reader leaves a factor out."""

    class Doubled(CrossEntropyCriterion):
        def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
            loss, size, logging_output = super().forward(model, sample, reduce)
            return 2 * loss, size, logging_output

    @sentence_losses_for(Doubled)
    def halves(criterion: Any, model: Any, sample: Any) -> SentenceLosses:
        read = token_losses(criterion, model, sample)
        return read._replace(losses=read.losses / 2)

    yield Doubled
    name = next(n for n in SENTENCE_LOSSES.names() if n.endswith("Doubled"))
    del SENTENCE_LOSSES._entries[name]


@pytest.mark.parametrize("method", ["delta_sam", "norms", "per_instance"])
def test_a_reader_of_another_loss_is_refused(translation: Path, wrong: type, method: str) -> None:
    trainer = trainer_of(translation, *METHODS[method], criterion=wrong)
    refused(trainer, "sentence losses that halves reads have .*Correct halves, or use")


@pytest.mark.parametrize("method", METHODS)
def test_the_check_disturbs_nothing(
    translation: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, in two updates: weights, buffers and generators, bit for bit."""
    ends, asked = [], []
    compare = AddingUp._compare

    def counted(*args: Any, share: float) -> bool:
        asked.append(1)
        return compare(*args, share=share)

    monkeypatch.setattr(AddingUp, "_compare", staticmethod(counted))
    for checked in (True, False):
        if not checked:
            for name in ("check_reader", "check_pieces"):
                monkeypatch.setattr(AddingUp, name, lambda *a, **k: None)
        trainer = trainer_of(translation, *METHODS[method])
        toys.updates(trainer, [[s] for s in toys.batches(trainer)[:2]])
        state = toys.used(trainer.get_model().state_dict())
        ends.append({**state, "drawn": RandomState.capture().cpu})
    assert asked == [1]
    assert_same_bits(ends[0], ends[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_random_in_evaluation_too_is_not_refused_for_that(
    translation: Path, method: str
) -> None:
    """With dropout that never stops, as by ``F.dropout(x, p)``, and a criterion that adds up."""

    class Always(torch.nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(super().forward(x), 0.5)

    trainer = trainer_of(translation, *METHODS[method])
    trainer.get_model().decoder.layers[-1].final_layer_norm.__class__ = Always
    toys.updates(trainer, [[toys.batches(trainer)[0]]])
    assert trainer.get_num_updates() == 1


def test_modes_and_statistics_are_put_back() -> None:
    model = torch.nn.Sequential(
        torch.nn.BatchNorm1d(2), torch.nn.Dropout(), torch.nn.BatchNorm1d(2).eval()
    )
    before = {n: v.clone() for n, v in model.state_dict().items()}
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    with pytest.raises(KeyError), adding_up.evaluating(model):
        # By the recorded statistics (0 and 1), and nothing is dropped.
        torch.testing.assert_close(model(x), x, atol=1e-3, rtol=0)
        raise KeyError
    assert_same_bits(model.state_dict(), before)
    assert [m.training for m in model.modules()] == [True, True, True, False]


PLAIN = torch.nn.Linear(1, 1)


def numbers(*scores: tuple[float, float]) -> Any:
    """A task's step that scores one batch after the other, the first of them twice."""
    left = iter([*scores[:1], *scores])

    def step(batch: Any, model: Any, criterion: Any) -> Any:
        loss, size = next(left)
        if batch == "fails":
            raise RuntimeError("shapes")
        return loss, size, {}

    return step


@pytest.fixture
def check() -> AddingUp:
    weights = SimpleNamespace(
        state=lambda: PassState.capture([]), computes_in_full=lambda: True, is_scaled=False
    )
    return AddingUp(weights)  # type: ignore[arg-type]


def test_what_tells_nothing_leaves_the_question_open(check: AddingUp) -> None:
    check.check_pieces(numbers(), PLAIN, None, {}, [{}])  # a batch of one adds up by itself
    infinite = numbers((float("inf"), 2), (1.0, 1), (1.0, 1))
    check.check_pieces(infinite, PLAIN, None, {}, [{}, {}])
    random: Iterator[Any] = iter([(1.0, 2, {}), (1.1, 2, {})])
    check.check_pieces(lambda *_, **__: next(random), PLAIN, None, {}, [{}, {}])
    with pytest.raises(ValueError, match="loss of 2 and a sample size of 2, but the batch has 1"):
        check.check_pieces(numbers((1.0, 1), (1.0, 1), (1.0, 1)), PLAIN, None, {}, [{}, {}])
    check.check_pieces(numbers((2.0, 2), (1.0, 1), (1.0, 1)), PLAIN, None, {}, [{}, {}])
    # It adds up: nothing is scored any more.
    check.check_pieces(numbers(), PLAIN, None, {}, [{}, {}])


@pytest.mark.parametrize(
    ("parts", "fine"),
    [
        (((0.5, 1), (0.5, 1)), True),
        (((0.5, 1), (0.501, 1)), True),
        (((0.5, 1), (0.55, 1)), False),
        (((0.5, 1), (0.5, 2)), False),
        (((0.0, 1), (0.0, 1)), False),
    ],
)
def test_how_much_rounding_is_allowed(check: AddingUp, parts: Any, fine: bool) -> None:
    step = numbers((1.0, 2), *parts)
    if fine:
        check.check_pieces(step, PLAIN, None, {}, [{}, {}])
        return
    with pytest.raises(ValueError, match="do not add up"):
        check.check_pieces(step, PLAIN, None, {}, [{}, {}])


def test_a_sentence_that_cannot_be_scored_alone_is_said(check: AddingUp) -> None:
    step = numbers((1.0, 2), (0.5, 1), (0.5, 1))
    with pytest.raises(
        ValueError, match="cannot be scored: RuntimeError: shapes. Use --sam-method"
    ):
        check.check_pieces(step, PLAIN, None, {}, [{}, "fails"])  # type: ignore[list-item]
