"""The study of perturbations: every point by brute force, its costs, a tiny run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("fairseq")

from deltasam_fairseq.core import (  # noqa: E402
    delta_sam_step,
    grouped_step,
    per_instance_step,
    reference,
    sam_step,
)
from deltasam_fairseq.core.estimators import ESTIMATORS, OF_NORMS  # noqa: E402
from deltasam_fairseq.core.graph import gradients_aside  # noqa: E402
from deltasam_fairseq.core.weight_space import WeightSpace  # noqa: E402
from deltasam_fairseq.fairseq_plugin.sharpness.radius_rules import factors_of  # noqa: E402
from deltasam_fairseq.per_instance import Engine  # noqa: E402
from scripts.studies import perturbation_quality as study  # noqa: E402
from scripts.studies.perturbation_quality import Batch  # noqa: E402
from scripts.studies.subject import Subject  # noqa: E402
from tests.support.compare import assert_close, assert_same_bits, copies  # noqa: E402
from tests.support.problems import transformer  # noqa: E402

RHO, ETA, SEED = 0.05, 1e-4, 3


def subject_and_losses() -> tuple[Subject, Callable[[Sequence[Tensor]], Tensor]]:
    toy = transformer(sentences=6)
    (tokens,) = toy.batches[0]

    def score(model: nn.Module, group: Sequence[Tensor]) -> Tensor:
        return toy.score(model, (torch.stack(list(group)),))

    return Subject(toy.model, [list(tokens)], score, {"name": "toy"}), toy.losses_at()


def of_step(subject: Subject, step: Callable[..., object]) -> list[Tensor]:
    """Take the mean gradient that a step of the core leaves."""
    params = list(subject.model.parameters())
    with gradients_aside(params):
        step(params, partial(subject.losses, subject.model, subject.groups[0]))
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in params]


def test_every_point_is_the_step_of_that_name() -> None:
    subject, losses_at = subject_and_losses()
    params = list(subject.model.parameters())
    before = copies(params)
    batch = Batch(subject, subject.groups[0], Engine(subject.model), rho=RHO)
    found = dict(batch.gradients(eta=ETA, seed=SEED))
    shaped = WeightSpace(params, factors=factors_of("norm_only", subject.model))
    estimators = {**study.ESTIMATED, **{name: name for name in OF_NORMS}}
    steps: dict[str, Callable[..., object]] = {
        "sam": partial(sam_step, rho=RHO),
        "norm_only": lambda _, losses: sam_step(shaped, losses, rho=RHO),
        "exact": partial(per_instance_step, rho=RHO),
        "per_instance": partial(per_instance_step, rho=RHO),
        **{
            name: partial(grouped_step, groups=study.GROUPS[name], rho=RHO, seed=SEED)
            for name in ("groups2", "groups4")
        },
        **{
            name: partial(
                delta_sam_step, rho=RHO, eta=ETA, seed=SEED, estimator=ESTIMATORS.get(estimator)
            )
            for name, estimator in estimators.items()
        },
    }
    assert found.keys() == steps.keys() | study.FRACTIONS.keys()
    for name, step in steps.items():
        assert_close(found[name], of_step(subject, step), rtol=1e-6, atol=1e-10)
    for name, chosen in (("fraction", 2), ("half", 3)):
        weights = batch.weights(name, eta=ETA, seed=SEED)
        assert sorted(weights.tolist()) == [0.0] * (6 - chosen) + [1.0] * chosen
        expected = reference.weighted_gradient(losses_at, params, weights.double(), rho=RHO)
        assert_close(found[name], expected, rtol=1e-6, atol=1e-10)
    cells = batch.cells(eta=ETA, seed=SEED)
    assert cells["per_instance"]["closeness"] == pytest.approx(1.0, abs=1e-9)
    assert cells["per_instance"]["length"] == pytest.approx(1.0, abs=1e-9)
    parts = {name: flat(found[name]) - flat(batch.plain) for name in ("sam", "exact")}
    cosine = torch.nn.functional.cosine_similarity(parts["sam"], parts["exact"], dim=0)
    assert cells["sam"]["closeness"] == pytest.approx(cosine.item(), abs=1e-9)
    assert cosine < 0.999
    ratio = parts["sam"].norm() / parts["exact"].norm()
    assert cells["sam"]["length"] == pytest.approx(ratio.item())
    assert_same_bits(params, before)
    assert all(param.grad is None for param in params)


def flat(vector: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in vector])


def test_a_killed_run_goes_on_and_its_record_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = "--random tiny --batch-size 4 --tokens 5 --title toy".split()
    study.main([*few, "--batches", "2", "--json"])
    whole = json.loads(capsys.readouterr().out)
    kept = ["--keep", str(tmp_path / "kept.jsonl"), "--json"]
    study.main([*few, "--batches", "2", "--minutes", "1e-9", *kept])
    assert json.loads(capsys.readouterr().out)["batches"] == 1
    study.main([*few, "--batches", "2", *kept])
    text, said = capsys.readouterr()
    assert json.loads(text)["points"] == whole["points"]
    assert "batch 1 of 1" in said  # the other one was kept
    with pytest.raises(SystemExit):
        study.main([*few, "--batches", "2", "--rho", "0.01", *kept])
    assert "was measured with other settings" in capsys.readouterr().err

    path = tmp_path / "record.json"
    path.write_text(text)
    study.main(["--show", str(path)])
    table = capsys.readouterr().out
    found = whole["points"]["sam"]["closeness"]
    assert f"| {found['mean']:.2f} ± {found['sd']:.2f} |" in table
    assert table.count("\n| `") == 2 * len(study.LABELS)
    assert study.costs()["sam"]["time × sam"] == study.costs()["sam"]["memory × sam"] == 1
    pytest.importorskip("matplotlib")
    study.main(["--show", str(path), "--plot", str(tmp_path / "figure.svg")])
    assert "K = 1, 2, 4, 8 groups" in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--random tiny --plot figure.svg", "--plot draws kept records"),
        ("--random tiny --rho 0.01,0.02", "--rho takes one radius"),
        ("--show absent.json", "absent.json holds no record"),
    ],
)
def test_what_cannot_be_measured_is_said(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        study.main(words.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
