"""The contract of per-sentence losses, for every registered reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.criterions.sentence_ranking import SentenceRankingCriterion
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin import hook
from deltasam_fairseq.fairseq_plugin.criterions import readers as sentence_losses
from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    SENTENCE_LOSSES,
    SentenceLosses,
    reader_for,
    sentence_losses_for,
)
from deltasam_fairseq.registry import UnknownName
from tests.support import fairseq_data
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits

TRANSLATION = ("--task", "translation", "--source-lang", "src", "--target-lang", "tgt", *toys.TINY)
LANGUAGE_MODEL = (
    "--task language_modeling --arch transformer_lm --tokens-per-sample 16 --decoder-layers 2 "
    "--decoder-embed-dim 16 --decoder-ffn-embed-dim 24 --decoder-attention-heads 2 "
    "--sample-break-mode eos"
).split()
MASKED = (
    "--task masked_lm --arch roberta_base --criterion masked_lm --tokens-per-sample 16 "
    "--sample-break-mode eos --mask-prob 0.4"
).split() + toys.ENCODER


@dataclass
class Problem:
    """A criterion with its model, and batches together and alone."""

    criterion: Any
    model: Any
    batch: dict[str, Any]
    alone: list[dict[str, Any]]


def problem(data: Path, *flags: str) -> Problem:
    """Build a problem from a command line; sentences are long and short."""
    trainer = toys.make_trainer(data, *flags, "--optimizer", "adam")
    dataset = trainer.task.dataset("train")
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(1)
    items = [dataset[i] for i in range(6)]
    model = trainer.get_model()
    model.eval()
    return Problem(
        trainer.get_criterion(),
        model,
        dataset.collater(items),
        [dataset.collater([item]) for item in items],
    )


def ranking_problem(data: Path) -> Problem:
    """Build a ranking problem of two candidates out of classification data."""
    trainer: Trainer = toys.make_trainer(data, *toys.PREDICTION, "--optimizer", "adam")
    model = trainer.get_model()
    model.register_classification_head("sentence_classification_head", num_classes=1)
    model.eval()
    dataset = trainer.task.dataset("train")
    criterion = SentenceRankingCriterion(trainer.task, "sentence_classification_head", None, 2)
    items = [dataset[i] for i in range(7)]

    def sample(first: int, count: int) -> dict[str, Any]:
        one, two = (dataset.collater(items[s : s + count]) for s in (first, first + 1))
        return {**one, "net_input1": one["net_input"], "net_input2": two["net_input"]}

    return Problem(criterion, model, sample(0, 6), [sample(i, 1) for i in range(6)])


@pytest.fixture(scope="session")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("aligned"), aligned=True)


PROBLEMS: dict[str, tuple[str, Callable[[Path], Problem]]] = {
    "cross_entropy": (
        "translation",
        lambda d: problem(d, *TRANSLATION, "--arch", "transformer", "--criterion", "cross_entropy"),
    ),
    "cross_entropy, language model": (
        "monolingual",
        lambda d: problem(d, *LANGUAGE_MODEL, "--criterion", "cross_entropy"),
    ),
    "label_smoothed_cross_entropy": ("translation", lambda d: problem(d, *toys.TRANSLATION)),
    "label_smoothed_cross_entropy, options": (
        "translation",
        lambda d: problem(
            d, *toys.TRANSLATION, "--sentence-avg", "--report-accuracy", "--ignore-prefix-size", "1"
        ),
    ),
    "deltasam_label_smoothed_cross_entropy": (
        "translation",
        lambda d: problem(
            d,
            *toys.TRANSLATION,
            *("--criterion", "deltasam_label_smoothed_cross_entropy"),
            *("--report-accuracy", "--ignore-prefix-size", "1"),
        ),
    ),
    "label_smoothed_cross_entropy_with_alignment": (
        "aligned",
        lambda d: problem(
            d,
            *TRANSLATION,
            *("--arch", "transformer_align", "--load-alignments", "--alignment-layer", "1"),
            *("--criterion", "label_smoothed_cross_entropy_with_alignment"),
            *("--label-smoothing", "0.1", "--alignment-lambda", "0.5"),
        ),
    ),
    "masked_lm": ("monolingual", lambda d: problem(d, *MASKED)),
    "sentence_prediction": ("prediction", lambda d: problem(d, *toys.PREDICTION)),
    "sentence_prediction, regression": (
        "regression",
        lambda d: problem(d, *toys.PREDICTION, "--regression-target", "--num-classes", "1"),
    ),
    "deltasam_sentence_prediction, BERT": ("prediction", lambda d: problem(d, *toys.BERT)),
    "deltasam_sentence_prediction, BERT, regression": (
        "regression",
        lambda d: problem(
            d,
            *toys.BERT,
            *("--regression-target", "--num-classes", "1", "--sentence-metrics", "pearson"),
        ),
    ),
    "sentence_ranking": ("prediction", ranking_problem),
    "adaptive_loss": (
        "translation",
        lambda d: problem(
            d,
            *TRANSLATION,
            *("--arch", "transformer", "--criterion", "adaptive_loss"),
            *("--adaptive-softmax-cutoff", "8,16", "--ddp-backend", "legacy_ddp"),
        ),
    ),
}


@pytest.fixture(params=sorted(PROBLEMS))
def found(request: pytest.FixtureRequest) -> Problem:
    data, build = PROBLEMS[request.param]
    return build(request.getfixturevalue(data))


def test_every_reader_has_a_problem(request: pytest.FixtureRequest) -> None:
    seen = set()
    for data, build in PROBLEMS.values():
        seen.add(type(build(request.getfixturevalue(data)).criterion).__name__)
    # Not the criterions of tests and examples that this process has imported.
    registered = {
        SENTENCE_LOSSES.describe(name)
        for name in SENTENCE_LOSSES.names()
        if name.startswith(("deltasam_fairseq.", "fairseq."))
    }
    # InfoNCE's sentences depend on each other: test_mirror.py has its contract.
    assert registered - {"InfoNCECriterion"} == seen


def test_the_plain_criterion_is_fairseqs(translation: Path) -> None:
    """Losses, sample size and all that is logged."""
    options = ("--sentence-avg", "--report-accuracy", "--ignore-prefix-size", "1")
    own = ("--criterion", "deltasam_label_smoothed_cross_entropy")
    logs = []
    for more in ((), own):
        one = problem(translation, *toys.TRANSLATION, *options, *more)
        loss, size, log = one.criterion(one.model, one.batch)
        logs.append({"": float(loss), "size": float(size), **{k: float(v) for k, v in log.items()}})
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_losses_sum_to_the_criterions_own(found: Problem) -> None:
    loss, size, logging = found.criterion(found.model, found.batch)
    read = reader_for(found.criterion)(found.criterion, found.model, found.batch)
    assert read.losses.shape == (6,)
    torch.testing.assert_close(read.losses.sum().view(()), loss.view(()), rtol=1e-5, atol=1e-5)
    assert float(read.sample_size) == float(size)
    # A worker without data logs the criterion's own output, and fairseq reduces
    # tensors and numbers in different buffers, in the order of the keys.
    kinds = [[(k, torch.is_tensor(v)) for k, v in log.items()] for log in (logging, read[2])]
    assert kinds[0] == kinds[1]
    assert read.logging_output.keys() == logging.keys()
    for key, value in logging.items():
        assert float(read.logging_output[key]) == pytest.approx(float(value), rel=1e-5), key


def test_gradients_are_the_criterions_own(found: Problem) -> None:
    params = [p for p in found.model.parameters() if p.requires_grad]
    loss = found.criterion(found.model, found.batch)[0].sum()
    read = reader_for(found.criterion)(found.criterion, found.model, found.batch)
    own = torch.autograd.grad(loss, params, allow_unused=True)
    ours = torch.autograd.grad(read.losses.sum(), params, allow_unused=True)
    for a, b in zip(own, ours, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


def test_a_padded_batch_equals_its_sentences_alone(found: Problem) -> None:
    reader = reader_for(found.criterion)
    together = reader(found.criterion, found.model, found.batch).losses
    by_id = dict(zip(found.batch["id"].tolist(), together, strict=True))
    for sample in found.alone:
        alone = reader(found.criterion, found.model, sample).losses
        (number,) = sample["id"].tolist()
        torch.testing.assert_close(alone[0], by_id[number], rtol=1e-4, atol=1e-5)


def test_more_padding_changes_nothing(translation: Path) -> None:
    found = PROBLEMS["label_smoothed_cross_entropy"][1](translation)
    reader = reader_for(found.criterion)
    before = reader(found.criterion, found.model, found.batch).losses
    pad = found.criterion.padding_idx
    inputs = found.batch["net_input"]
    wide = torch.nn.functional.pad
    padded = {
        **found.batch,
        "target": wide(found.batch["target"], (0, 3), value=pad),
        "net_input": {
            **inputs,
            "src_tokens": wide(inputs["src_tokens"], (3, 0), value=pad),
            "prev_output_tokens": wide(inputs["prev_output_tokens"], (0, 3), value=pad),
        },
    }
    after = reader(found.criterion, found.model, padded).losses
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_masked_lm_without_any_masked_token(monolingual: Path) -> None:
    found = PROBLEMS["masked_lm"][1](monolingual)
    blank = {
        **found.batch,
        "target": torch.full_like(found.batch["target"], found.criterion.padding_idx),
    }
    read = reader_for(found.criterion)(found.criterion, found.model, blank)
    assert read.losses.tolist() == [0.0] * 6
    assert int(read.sample_size) == 0


@register_criterion("renamed", dataclass=LabelSmoothedCrossEntropyCriterionConfig)
class Renamed(LabelSmoothedCrossEntropyCriterion):
    """Its loss is its parent's: it logs in another way, and has a method of its own."""

    def __init__(self, task: Any, sentence_avg: bool, label_smoothing: float) -> None:
        super().__init__(task, sentence_avg, label_smoothing)
        self.extra = 1

    @staticmethod
    def reduce_metrics(logging_outputs: Any) -> None:
        metrics.log_scalar("loss", sum(log["loss"] for log in logging_outputs))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True

    def describe(self) -> str:
        return "renamed"


class Scaled(Renamed):
    """Its loss is another, through a method that ``forward`` calls."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss, nll = super().compute_loss(*args, **kwargs)
        return 2 * loss, nll


class MovedMasked(MaskedLmLoss):
    """Its reader never calls ``forward``, so that a change there would not be seen."""

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        return super().forward(model, sample, reduce)


@pytest.mark.parametrize("method", ["delta_sam", "per_instance"])
def test_a_subclass_that_only_logs_otherwise_has_its_parents_reader(
    translation: Path, method: str
) -> None:
    logs = []
    for criterion in ("label_smoothed_cross_entropy", "renamed"):
        flags = ("--criterion", criterion, "--sam-method", method)
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        toys.updates(trainer, [toys.batches(trainer)[:1]])
        logs.append(toys.parameters(trainer))
        assert not hook._runs[trainer].needs_loop
    assert_same_bits(logs[0], logs[1])


@pytest.mark.parametrize(
    ("problem_name", "criterion", "changed", "reader"),
    [
        ("label_smoothed_cross_entropy", Scaled, "compute_loss", "token_losses"),
        ("masked_lm", MovedMasked, "forward", "masked_token_losses"),
    ],
)
def test_a_subclass_that_may_have_another_loss_is_told_the_line_to_add(
    request: pytest.FixtureRequest, problem_name: str, criterion: type, changed: str, reader: str
) -> None:
    data, build = PROBLEMS[problem_name]
    found = build(request.getfixturevalue(data))
    parent = type(found.criterion).__name__
    found.criterion.__class__ = criterion
    with pytest.raises(UnknownName) as error:
        reader_for(found.criterion)
    text = str(error.value)
    assert f"{criterion.__name__}: it is a {parent}, but {changed} is its own" in text
    assert "--sam-method sam" in text
    lines = [line.strip() for line in text.splitlines()[1:]]
    assert lines[-1] == f"sentence_losses_for({criterion.__name__})({reader})"
    name = f"{criterion.__module__}.{criterion.__qualname__}"
    try:
        exec("\n".join(lines), {criterion.__name__: criterion})
        assert reader_for(found.criterion) is getattr(sentence_losses, reader)
        read = reader_for(found.criterion)(found.criterion, found.model, found.batch)
        loss = found.criterion(found.model, found.batch)[0]
        torch.testing.assert_close(read.losses.sum(), loss, rtol=1e-5, atol=1e-5)
    finally:
        del SENTENCE_LOSSES._entries[name]


def test_a_method_put_on_the_criterion_counts_as_its_own(translation: Path) -> None:
    found = PROBLEMS["label_smoothed_cross_entropy"][1](translation)
    found.criterion.compute_loss = found.criterion.compute_loss
    with pytest.raises(UnknownName, match="but compute_loss is its own"):
        reader_for(found.criterion)


def test_a_class_before_the_parent_counts_too(translation: Path) -> None:
    found = PROBLEMS["label_smoothed_cross_entropy"][1](translation)

    class Mixin:
        def get_lprobs_and_target(self, *args: Any) -> Any:
            raise NotImplementedError

    found.criterion.__class__ = type("Mixed", (Mixin, LabelSmoothedCrossEntropyCriterion), {})
    with pytest.raises(UnknownName, match="but get_lprobs_and_target is its own"):
        reader_for(found.criterion)


def test_an_unknown_criterion_is_told_how_to_add_a_reader(translation: Path) -> None:
    found = PROBLEMS["label_smoothed_cross_entropy"][1](translation)

    class Changed(FairseqCriterion):
        pass

    found.criterion.__class__ = Changed
    with pytest.raises(UnknownName) as error:
        reader_for(found.criterion)
    text = str(error.value)
    assert "LabelSmoothedCrossEntropyCriterion" in text
    assert "@sentence_losses_for(Changed)" in text
    assert "--sam-method sam" in text

    @sentence_losses_for(Changed)
    def read(criterion: Any, model: Any, sample: Any) -> SentenceLosses:
        return SentenceLosses(torch.zeros(1), 1, {})

    try:
        assert reader_for(found.criterion) is read
    finally:
        name = next(n for n in SENTENCE_LOSSES.names() if n.endswith("Changed"))
        del SENTENCE_LOSSES._entries[name]


def test_a_penalty_on_weights_belongs_to_no_sentence(prediction: Path) -> None:
    found = PROBLEMS["sentence_prediction"][1](prediction)
    found.model.args.mha_reg_scale_factor = 0.5
    with pytest.raises(ValueError, match="mha_reg_scale_factor .* belongs to no sentence"):
        reader_for(found.criterion)(found.criterion, found.model, found.batch)
