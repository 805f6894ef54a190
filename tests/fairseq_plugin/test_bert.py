"""BERT in fairseq, and the metrics of its criterion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.logging import metrics

from deltasam_fairseq.evaluation.glue import GlueTask, glue_scores
from deltasam_fairseq.fairseq_plugin.criterions.sentence_prediction import score
from tests.support import fairseq_toys as toys
from tests.support.workers import run_workers

SINGLE = GlueTask("Toy", ("matthews", "accuracy"), ("0", "1"))


def model_of(data: Path, *flags: str) -> Any:
    return toys.make_trainer(data, *toys.BERT, *flags).get_model().eval()


def logits(model: Any, tokens: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        output, _ = model(
            torch.tensor(tokens), classification_head_name="sentence_classification_head"
        )
    return output


def test_only_what_lies_behind_the_separator_is_the_second_segment(prediction: Path) -> None:
    model = model_of(prediction)
    before = logits(model, [[0, 5, 2, 6, 2], [0, 5, 6, 2, 1]])
    with torch.no_grad():
        model.encoder.sentence_encoder.embed_segments.weight[1].normal_()
    after = logits(model, [[0, 5, 2, 6, 2], [0, 5, 6, 2, 1]])
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_every_parameter_takes_part(prediction: Path) -> None:
    """So fairseq needs no ``--find-unused-parameters``, and r covers nothing in vain."""
    trainer = toys.make_trainer(prediction, *toys.BERT)
    model, criterion = trainer.get_model(), trainer.get_criterion()
    loss, _, _ = criterion(model, toys.batches(trainer)[0])
    named = toys.used(dict(model.named_parameters()))
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    assert [name for name, g in zip(named, gradients, strict=True) if g is None] == []


def test_layer_norms_have_berts_epsilon(prediction: Path) -> None:
    norms = [m for m in model_of(prediction).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 5
    assert {norm.eps for norm in norms} == {1e-12}


def test_heads_of_a_checkpoint_are_taken_or_replaced(prediction: Path) -> None:
    model = model_of(prediction)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    head = "classification_heads.sentence_classification_head.out_proj.weight"
    same = {**own, head: own[head] + 1}
    model.load_state_dict(dict(same), strict=True)
    assert torch.equal(model.state_dict()[head], own[head] + 1)
    for changed in (
        {name: value for name, value in own.items() if name != head},
        {**own, head: torch.zeros(5, own[head].size(1))},
        {**own, "classification_heads.another.out_proj.weight": own[head]},
    ):
        model.load_state_dict(dict(changed), strict=True)


@pytest.mark.parametrize("method", ["none", "sam", "delta_sam"])
def test_it_trains_with_every_method(prediction: Path, method: str) -> None:
    steps = toys.train(prediction, *toys.BERT, "--sam-method", method)
    losses = [step["loss"] for step in steps if "loss" in step]
    assert losses
    assert all(0 < float(loss) < 5 for loss in losses)


def test_it_trains_with_random_weights(prediction: Path) -> None:
    toys.train(prediction, *toys.BERT, "--sam-method", "delta_sam", "--sam-estimator", "random")


def validate(trainer: Any) -> dict[str, float]:
    """Validate as fairseq-train does, batch by batch."""
    trainer.task.load_dataset("valid")
    iterator = trainer.get_valid_iterator("valid").next_epoch_itr(shuffle=False)
    with metrics.aggregate(new_root=True) as aggregated:
        for sample in iterator:
            trainer.valid_step(sample)
    found: dict[str, float] = aggregated.get_smoothed_values()
    return found


def expected_scores(trainer: Any) -> dict[str, float]:
    """Score the whole split at once with the evaluation."""
    dataset = trainer.task.dataset("valid")
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    head = "sentence_classification_head"
    with torch.no_grad():
        output, _ = trainer.get_model().eval()(**sample["net_input"], classification_head_name=head)
    predictions = [str(value) for value in output.argmax(1).tolist()]
    labels = [str(value) for value in sample["target"].view(-1).tolist()]
    return glue_scores(SINGLE, predictions, labels).scores


def test_validation_has_the_evaluations_metrics_over_the_whole_split(prediction: Path) -> None:
    trainer = toys.make_trainer(prediction, *toys.BERT, "--batch-size", "5")
    found = validate(trainer)
    for name, value in expected_scores(trainer).items():
        assert found[name] == pytest.approx(value, abs=0.05 if name == "accuracy" else 1e-9)
    assert not [name for name in found if name.startswith("_")]


def validate_in_worker(rank: int, count: int, port: int, data: Path) -> dict[str, float]:
    init = toys.join_workers(data, toys.BERT, rank, count, port)
    return validate(toys.make_trainer(data, *toys.BERT, "--batch-size", "5", *init))


@pytest.mark.multiprocess
def test_two_workers_log_what_one_logs(prediction: Path, tmp_path: Path) -> None:
    alone = validate(toys.make_trainer(prediction, *toys.BERT, "--batch-size", "5"))
    first, second = run_workers(validate_in_worker, 2, tmp_path, prediction)
    for name in ("matthews", "accuracy"):
        assert first[name] == second[name] == pytest.approx(alone[name], abs=1e-9)


def test_regression_has_pearson(regression: Path) -> None:
    flags = ("--regression-target", "--num-classes", "1", "--sentence-metrics", "pearson,spearman")
    found = validate(toys.make_trainer(regression, *toys.BERT, *flags))
    assert -100 <= found["pearson"] <= 100
    assert -100 <= found["spearman"] <= 100


def test_a_constant_has_no_correlation_and_no_error() -> None:
    assert score("pearson", [1.0, 1.0], [0.0, 1.0]) == 0.0
    assert score("matthews", [1.0, 0.0], [1.0, 0.0]) == 1.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sentence-metrics", "f2"), "f2: unknown for classes; known: accuracy, f1, matthews"),
        (
            ("--regression-target", "--num-classes", "1", "--sentence-metrics", "accuracy"),
            "accuracy: unknown for a regression; known: pearson, spearman",
        ),
    ],
)
def test_unknown_metrics_are_refused(
    prediction: Path, regression: Path, flags: tuple[str, ...], message: str
) -> None:
    data = regression if "--regression-target" in flags else prediction
    with pytest.raises(ValueError, match=message):
        toys.make_trainer(data, *toys.BERT, *flags)
