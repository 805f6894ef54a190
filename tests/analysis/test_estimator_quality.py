"""The quality of estimators: exact quantities by brute force, closed forms, records, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("fairseq")

from deltasam_fairseq.analysis import estimator_quality_bench as bench_module  # noqa: E402
from deltasam_fairseq.analysis import estimator_quality_weights as ways  # noqa: E402
from deltasam_fairseq.analysis.estimator_quality import measure  # noqa: E402
from deltasam_fairseq.analysis.estimator_quality_bench import (  # noqa: E402
    Bench,
    Cell,
    cosine,
    difference,
)
from deltasam_fairseq.analysis.estimator_quality_record import (  # noqa: E402
    Settings,
    record_of,
    tables_of,
)
from deltasam_fairseq.analysis.estimator_quality_subject import (  # noqa: E402
    KeepFloat64,
    Sentences,
    Subject,
    of_checkpoint,
    of_pairs,
)
from deltasam_fairseq.analysis.estimator_quality_weights import Probes, averaged  # noqa: E402
from deltasam_fairseq.analysis.probe_precision_load import random_subject  # noqa: E402
from deltasam_fairseq.cli.main import main  # noqa: E402
from deltasam_fairseq.core import reference  # noqa: E402
from deltasam_fairseq.core.estimators import ESTIMATORS  # noqa: E402
from deltasam_fairseq.per_instance import Engine  # noqa: E402
from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402
from tests.support.compare import assert_close, assert_same_bits, copies  # noqa: E402
from tests.support.problems import Problem, transformer  # noqa: E402

RHO, ETA = 0.05, 1e-4
ONE_PROBE = Probes(directions=1)
LossesAt = Callable[[Sequence[Tensor]], Tensor]


class Quadratic(nn.Module):
    """``l_i(w) = a_i (x_i · w)² / 2``, of which everything is known in closed form.

    The gradient is a_i (x_i · w) x_i and the Hessian a_i x_i x_iᵀ: the paper's rank-one
    assumption holds, with its a_i being 1 / (a_i (x_i · w)²).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, 1, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return rows[:, 0] * self.line(rows[:, 1:]).squeeze(1).square() / 2


def rows_of(group: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(group))


def quadratic(sentences: int = 5, width: int = 4, batches: int = 2) -> Subject:
    generator = torch.Generator().manual_seed(2)
    model = Quadratic(width).double()
    with torch.no_grad():
        model.line.weight.copy_(torch.randn(1, width, generator=generator))
    rows = torch.randn(batches, sentences, width + 1, generator=generator, dtype=torch.float64)
    rows[..., 0] = rows[..., 0].abs() + 0.5
    return Subject(
        model, [list(batch) for batch in rows], lambda used, group: used(rows_of(group)), {}
    )


def bench_of(subject: Subject) -> Bench:
    return Bench(subject, next(subject.batches()), Engine(subject.model), pytest.fail)


def cells_of(bench: Bench, *, seed: int = 1, probes: Probes = ONE_PROBE) -> dict[str, Cell]:
    return {c.name: c for c in bench.cells(RHO, eta=ETA, seed=seed, probes=probes)}


def test_the_quadratic_in_closed_form() -> None:
    subject = quadratic()
    bench = bench_of(subject)
    rows = rows_of(subject.groups[0])
    a, x = rows[:, 0], rows[:, 1:]
    w = next(subject.model.parameters()).detach()[0]
    inner = x @ w
    lengths = x.norm(dim=1)
    # eps_i = rho sign(x·w) x/|x|, so grad l_i(w + eps_i) = a (x·w + rho sign |x|) x.
    moved = (a * (inner + RHO * inner.sign() * lengths))[:, None] * x
    assert_close([bench.per_instance(RHO)[0][0]], [moved.mean(0)], rtol=1e-12)
    # a_i of the paper times |grad l_i|: gᵀHg/|g|³ = a|x|² / |a (x·w)| |x|.
    weights = a * lengths**2 / ((a * inner).abs() * lengths)
    assert_close([bench.exact_weights], [weights], rtol=1e-10)
    assert_close([bench.norms], [(a * inner).abs() * lengths], rtol=1e-12)
    # Under the paper's assumption Eq. 3's last line holds exactly, so the exact weights'
    # ascent is D's.
    aim = difference(bench.per_instance(RHO), bench.plain)
    assert cosine(bench.weighted(weights), aim) == pytest.approx(1.0, abs=1e-12)
    cells = cells_of(bench)
    assert cells["exact"].ascent == pytest.approx(1.0, abs=1e-12)
    assert cells["exact"].rank == pytest.approx(1.0)
    assert cells["uniform"].ascent == pytest.approx(cosine(bench.plain, aim))
    assert cells["uniform"].rank is None
    # The Hessians are positive here, so Eq. 4's claim holds: dR/dw has D's sign.
    assert 0 < (cells[ways.EXACT_ASCENT].change or 0) < 1


def explicit(toy: Problem) -> tuple[Subject, LossesAt]:
    """Make a subject of a problem in float64 whose sentences can be scored alone."""
    (tokens,) = toy.batches[0]

    def score(model: nn.Module, group: Sequence[Tensor]) -> Tensor:
        return toy.score(model, (torch.stack(list(group)),))

    return Subject(toy.model, [list(tokens)], score, {"name": "toy"}), toy.losses_at()


def weighted_loss(losses_at: LossesAt, values: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return (values * losses_at(weights)).sum()


def loss_of(losses_at: LossesAt, sentence: int, weights: Sequence[Tensor]) -> Tensor:
    return losses_at(weights)[sentence]


def flat(vector: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in vector])


def cos(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return torch.nn.functional.cosine_similarity(flat(left), flat(right), dim=0).item()


def test_a_transformer_by_brute_force() -> None:
    subject, losses_at = explicit(transformer(dtype=torch.float64))
    toy_params = [p.detach().clone() for p in subject.model.parameters()]
    before = copies(list(subject.model.parameters()))
    bench = bench_of(subject)
    plain = reference.plain_gradient(losses_at, toy_params)
    exact = reference.per_instance_gradient(losses_at, toy_params, rho=RHO)
    aim = [e - p for e, p in zip(exact, plain, strict=True)]
    assert_close(bench.plain, plain, rtol=1e-10, atol=1e-12)
    assert_close(bench.per_instance(RHO), exact, rtol=1e-9, atol=1e-11)
    weights = by_central_differences(losses_at, toy_params)
    assert_close([bench.exact_weights], [weights], rtol=1e-5)
    found = cells_of(bench, seed=3, probes=Probes(radius=0.3, directions=2))
    assert set(ESTIMATORS.names()) < set(found)
    assert ways.IN_FLOAT64 not in found  # all of it is
    for name in ("exact", "uniform"):
        values = weights if name == "exact" else torch.ones_like(weights)
        direction = reference.gradient(partial(weighted_loss, losses_at, values), toy_params)
        there = reference.weighted_gradient(losses_at, toy_params, values, rho=RHO)
        change = [t - p for t, p in zip(there, plain, strict=True)]
        assert found[name].ascent == pytest.approx(cos(direction, aim), abs=1e-5)
        assert found[name].change == pytest.approx(cos(change, aim), abs=1e-5)
        assert found[name].descent == pytest.approx(cos(there, exact), abs=1e-6)
    assert found[ways.PLAIN].descent == pytest.approx(cos(plain, exact), abs=1e-9)
    assert found[ways.EXACT_ASCENT].ascent == 1.0
    assert_same_bits(list(subject.model.parameters()), before)
    assert all(param.grad is None for param in subject.model.parameters())


def by_central_differences(losses_at: LossesAt, at: Sequence[Tensor], step: float = 1e-3) -> Tensor:
    """Return ``|uᵀ H_i u| / |g_i|``, u along sentence i's gradient, without a second derivative."""
    values = []
    for sentence in range(len(losses_at(at))):
        gradient = reference.gradient(partial(loss_of, losses_at, sentence), at)
        norm = flat(gradient).norm()
        sides = [
            losses_at([w + sign * step * g / norm for w, g in zip(at, gradient, strict=True)])
            for sign in (1, 0, -1)
        ]
        plus, middle, minus = (side[sentence].item() for side in sides)
        values.append(abs(plus + minus - 2 * middle) / step**2 / norm.item())
    return torch.tensor(values, dtype=torch.float64)


def test_a_refusal_of_the_batched_engine_goes_sentence_by_sentence() -> None:
    subject = quadratic()
    expected = bench_of(subject).per_instance(RHO)
    weight = next(subject.model.parameters())
    said: list[str] = []

    def score(model: Any, group: Sequence[Tensor]) -> Tensor:
        rows = rows_of(group)
        return rows[:, 0] * (rows[:, 1:] @ model.line.weight.T).squeeze(1).square() / 2

    refused = Subject(subject.model, subject.groups, score, {})
    bench = Bench(refused, next(refused.batches()), Engine(subject.model), said.append)
    assert_close(bench.per_instance(RHO), expected, rtol=1e-12)
    assert said
    assert weight.grad is None


def test_an_average_over_directions_is_one_ratio_of_two_means() -> None:
    at = torch.tensor([1.0, 1.0])
    sides = [
        (torch.tensor([1.5, 1.0]), torch.tensor([0.9, 1.0])),  # bends 0.4, 0; slopes 0.6, 0
        (torch.tensor([1.1, 1.0]), torch.tensor([0.3, 1.0])),  # bends -0.6, 0; slopes 0.8, 0
    ]
    found = averaged("two", at.double(), [(p.double(), m.double()) for p, m in sides], eta=1e-4)
    assert found.values.tolist() == pytest.approx([0.1 / 0.5**0.5, 0.0], rel=1e-6, abs=1e-9)
    assert found.floored == 0.5


def test_weights_that_are_all_zero_ascend_as_the_step_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = quadratic()
    monkeypatch.setattr(
        bench_module, "both_sides", lambda together, *_: (together().detach(), together().detach())
    )
    cells = cells_of(bench_of(subject))
    assert cells[ways.ALONG].ascent == cells["uniform"].ascent
    assert cells[ways.ALONG].rank is None
    assert cells[ways.ALONG].floored == 1.0


def test_float32_has_rows_that_are_probed_in_float64() -> None:
    probed = random_subject("tiny", batches=2, sentences=4, tokens=6, seed=1)
    subject = of_pairs(probed, torch.float32)
    radii, probes = (0.01, RHO), Probes(directions=2)
    found = measure(
        subject, radii=radii, eta=ETA, seed=1, probes=probes, more=lambda number: number < 1
    )
    assert len(found) == 1
    assert {cell.rho for cell in found[0]} == {0.01, RHO}
    by_name = {c.name: c for c in found[0] if c.rho == RHO}
    # A small model in float32 is precise enough for the two to agree (docs/precision.md).
    assert by_name[ways.IN_FLOAT64].ascent == pytest.approx(
        by_name["finite_difference"].ascent, abs=1e-2
    )
    assert by_name[ways.IN_FLOAT64].floored == by_name["finite_difference"].floored


@pytest.mark.parametrize("name", ["prediction", "translation"])
def test_fairseq_checkpoints_in_float64_are_in_float64(name: str, tmp_path: Path) -> None:
    if name == "prediction":
        data, flags = fairseq_data.write_prediction_data(tmp_path), toys.BERT
    else:
        data, flags = fairseq_data.write_translation_data(tmp_path), toys.TRANSLATION
    trainer = toys.make_trainer(data, *flags)
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(data / "model.pt"), {"train_iterator": {"epoch": 1}})
    make = partial(of_checkpoint, data, data / "model.pt", "train", size=5, seed=1)
    subject = make(batches=2, dtype=torch.float64)
    sentences = next(subject.batches())
    with subject.within():
        losses = sentences.together()
        assert losses.dtype == torch.float64
        alone = torch.cat([one() for one in sentences.alone])
        single = next(make(batches=1, dtype=torch.float32).batches()).together()
        bench = Bench(subject, sentences, Engine(subject.model), pytest.fail)
        exact = bench.per_instance(RHO)
        total = [torch.zeros_like(part) for part in exact]
        for one in sentences.alone:
            lone = Bench(
                subject, Sentences(one, [one], sentences.of), Engine(subject.model), pytest.fail
            )
            total = [t + g / 5 for t, g in zip(total, lone.per_instance(RHO), strict=True)]
    # The same sentences in the same order, and nothing on the way was rounded to float32.
    if name == "prediction":
        assert_close([alone], [losses], rtol=1e-12)
        assert_close([single.double()], [losses], rtol=1e-4)
    assert alone.sum().item() == pytest.approx(losses.sum().item(), rel=1e-12)
    assert_close(exact, total, rtol=1e-7, atol=1e-10)


def test_float64_is_kept_where_float32_was_asked_for() -> None:
    x = torch.randn(3, dtype=torch.float64)
    with KeepFloat64():
        assert x.float() is x
        assert x.log_softmax(0, dtype=torch.float32).dtype == torch.float64
        assert x.half().float().dtype == torch.float32
        assert torch.nn.functional.softmax(x.half(), dim=0, dtype=torch.float32).dtype == (
            torch.float32
        )
    assert x.float().dtype == torch.float32


def test_a_record_is_read_back_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = quadratic()
    subject.about = {"name": "quadratic", "weights": "random", "text": "none"}
    found = measure(subject, radii=(RHO,), eta=ETA, seed=1, probes=Probes(directions=1))
    around = {"hardware": {"processor": "a CPU"}, "versions": {"torch": "2"}}
    record = record_of(
        subject, found, Settings(rho=(RHO,), precision="float64"), command="c", around=around
    )
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert main(["analyse", "estimator-quality", "--show", str(path)]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert text == tables_of([record])
    rows = [line for line in text.splitlines() if line.startswith("| 0.05 |")]
    assert len({line.count("|") for line in rows}) == 1
    cells = {cell["name"]: cell for cell in record["cells"]}
    assert cells["exact"]["rank"]["n"] == 2
    assert cells["exact"]["rank"]["mean"] == pytest.approx(1.0)
    assert cells["uniform"]["rank"] == {"n": 0, "mean": None, "sd": None, "values": []}
    assert record["batches"] == 2
    best, base = (cells[name]["change"]["values"] for name in ("exact", "uniform"))
    mean = sum(mine - theirs for mine, theirs in zip(best, base, strict=True)) / 2
    row = next(line for line in rows if "| exact |" in line)
    assert f"| {mean:+.2f} ± " in row
    above = sum(mine > theirs for mine, theirs in zip(best, base, strict=True))
    assert row.endswith(f", {above} of 2 > 0 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model"),
        (["RUN", "--encoder", "F", "--mrpc", "T"], "give a model"),
        (["--encoder", "F"], "--mrpc"),
        (["RUN", "--rho", "a"], "numbers with commas"),
        (["RUN", "--rho", "0"], "--rho"),
        (["RUN", "--eta", "-1"], "--eta"),
        (["RUN", "--probe-radius", "0"], "--probe-radius"),
        (["RUN", "--batch-size", "1"], "--batch-size"),
        (["RUN", "--seed", "-1"], "--seed"),
        (["RUN", "--minutes", "-1"], "--minutes"),
        (["RUN"], "is not a run"),
        (["--show", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", "estimator-quality", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_too_few_sentences_are_an_error(tmp_path: Path) -> None:
    data = fairseq_data.write_prediction_data(tmp_path)
    trainer = toys.make_trainer(data, *toys.BERT)
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(data / "model.pt"), {"train_iterator": {"epoch": 1}})
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"data": str(tmp_path)}))
    arguments = ["analyse", "estimator-quality", str(run), "--batches", "40"]
    assert main(arguments) == 2
    (data / "model.pt").rename(run / "checkpoints" / "checkpoint_best.pt")
    assert main(arguments) == 2
