"""The study of estimators: exact quantities by brute force and in closed form, a tiny run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("fairseq")

from deltasam_fairseq.core import reference  # noqa: E402
from deltasam_fairseq.core.estimators import ESTIMATORS  # noqa: E402
from deltasam_fairseq.per_instance import Engine  # noqa: E402
from scripts.studies import estimator_quality as study  # noqa: E402
from scripts.studies.estimator_quality import Bench, Cell, Probes, cosine, difference  # noqa: E402
from scripts.studies.subject import KeepFloat64, Subject, in_groups, run_subject  # noqa: E402
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
    return Bench(subject, subject.groups[0], Engine(subject.model))


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
    assert 0 < (cells[study.EXACT_ASCENT].change or 0) < 1


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
    for name in ("exact", "uniform"):
        values = weights if name == "exact" else torch.ones_like(weights)
        direction = reference.gradient(partial(weighted_loss, losses_at, values), toy_params)
        there = reference.weighted_gradient(losses_at, toy_params, values, rho=RHO)
        change = [t - p for t, p in zip(there, plain, strict=True)]
        assert found[name].ascent == pytest.approx(cos(direction, aim), abs=1e-5)
        assert found[name].change == pytest.approx(cos(change, aim), abs=1e-5)
        assert found[name].descent == pytest.approx(cos(there, exact), abs=1e-6)
    assert found[study.PLAIN].descent == pytest.approx(cos(plain, exact), abs=1e-9)
    assert found[study.EXACT_ASCENT].ascent == 1.0
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


def test_a_refusal_of_the_batched_engine_goes_sentence_by_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    subject = quadratic()
    expected = bench_of(subject).per_instance(RHO)
    weight = next(subject.model.parameters())

    def score(model: Any, group: Sequence[Tensor]) -> Tensor:
        rows = rows_of(group)
        return rows[:, 0] * (rows[:, 1:] @ model.line.weight.T).squeeze(1).square() / 2

    refused = Subject(subject.model, subject.groups, score, {})
    assert_close(bench_of(refused).per_instance(RHO), expected, rtol=1e-12)
    assert "sentence by sentence: " in capsys.readouterr().err
    assert weight.grad is None


def test_an_average_over_directions_is_one_ratio_of_two_means() -> None:
    at = torch.tensor([1.0, 1.0]).double()
    sides = [
        (torch.tensor([1.5, 1.0]), torch.tensor([0.9, 1.0])),  # bends 0.4, 0; slopes 0.6, 0
        (torch.tensor([1.1, 1.0]), torch.tensor([0.3, 1.0])),  # bends -0.6, 0; slopes 0.8, 0
    ]
    found = study.weighed("two", at, [(p.double(), m.double()) for p, m in sides], eta=1e-4)
    assert found.values.tolist() == pytest.approx([0.1 / 0.5**0.5, 0.0], rel=1e-6, abs=1e-9)
    assert found.floored == 0.5


def test_weights_that_are_all_zero_ascend_as_the_step_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = quadratic()
    monkeypatch.setattr(
        study, "both_sides", lambda together, *_: (together().detach(), together().detach())
    )
    cells = cells_of(bench_of(subject))
    assert cells[study.ALONG].ascent == cells["uniform"].ascent
    assert cells[study.ALONG].rank is None
    assert cells[study.ALONG].floored == 1.0


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"split": "train", "batches": 2, "batch_size": 5, "seed": 1, **changes}
    )


def saved(folder: Path, name: str) -> Path:
    """Write data and an untrained model of fairseq; return the checkpoint."""
    if name == "prediction":
        data, flags = fairseq_data.write_prediction_data(folder), toys.BERT
    else:
        data, flags = fairseq_data.write_translation_data(folder), toys.TRANSLATION
    trainer = toys.make_trainer(data, *flags)
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(folder / "model.pt"), {"train_iterator": {"epoch": 1}})
    return folder / "model.pt"


@pytest.mark.parametrize("name", ["prediction", "translation"])
def test_fairseq_checkpoints_in_float64_are_in_float64(name: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, name)
    subject = run_subject(tmp_path, checkpoint, arguments())
    single = subject.losses(subject.model.eval(), subject.groups[0])
    subject.model.double()
    bench = bench_of(subject)
    losses = bench.together()
    assert losses.dtype == torch.float64
    alone = torch.cat([one() for one in bench.alone])
    exact = bench.per_instance(RHO)
    engine = Engine(subject.model)
    lone = [Bench(subject, [one], engine).per_instance(RHO) for one in subject.groups[0]]
    total = [sum(parts) / 5 for parts in zip(*lone, strict=True)]
    # Nothing on the way was rounded to float32.
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


def test_sentences_are_dealt_in_their_order() -> None:
    assert in_groups([1, 2, 3, 4], arguments(batch_size=2)) == [[1, 2], [3, 4]]


def test_a_run_is_compared_and_its_record_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    saved(tmp_path / "bin", "prediction").rename(run / "checkpoints" / "checkpoint_best.pt")
    (run / "run.json").write_text(json.dumps({"data": str(tmp_path)}))
    few = "--batches 2 --batch-size 4 --rho 0.05 --probe-count 2 --threads 1".split()
    study.main([str(run), *few, "--json"])
    text = capsys.readouterr().out
    assert str(tmp_path) not in text
    record = json.loads(text)
    cells = {cell["name"]: cell for cell in record["cells"]}
    assert cells["exact"]["rank"]["n"] == record["batches"] == 2
    assert cells["exact"]["rank"]["mean"] == pytest.approx(1.0)
    assert cells["uniform"]["rank"] == {"n": 0, "mean": None, "sd": None, "values": []}
    # A small model in float32 is precise enough for the two to agree (docs/precision.md).
    both = [cells[name]["ascent"]["values"] for name in (study.IN_FLOAT64, "finite_difference")]
    assert both[0] == pytest.approx(both[1], abs=1e-2)
    path = tmp_path / "record.json"
    path.write_text(text)
    study.main(["--show", str(path)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0.05 |")]
    best, base = (cells[name]["change"]["values"] for name in ("exact", "uniform"))
    mean = sum(mine - theirs for mine, theirs in zip(best, base, strict=True)) / 2
    above = sum(mine > theirs for mine, theirs in zip(best, base, strict=True))
    row = next(line for line in rows if "| exact |" in line)
    assert f"| {mean:+.2f} ± " in row
    assert row.endswith(f", {above} of 2 > 0 |")
    with pytest.raises(SystemExit):
        study.main([str(run), "--batches", "40"])
    assert "train has 48 sentences, 640 are needed" in capsys.readouterr().err
    # No batch is begun that would not end in time.
    study.main([str(run), *few, "--minutes", "1e-9"])
    assert ": 1 batch of 4, float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give a model: RUN, or --random SIZE"),
        ("RUN --random tiny", "not allowed with argument"),
        ("--random huge", "invalid choice: 'huge'"),
        ("--random tiny --tokens 65", "64 positions, got 65 tokens"),
        ("RUN", "RUN is not a run"),
        ("RUN --rho a", "--rho: 'a' is not a number above 0"),
        ("RUN --rho 0", "--rho: 0 is not a number above 0"),
        ("RUN --eta nan", "--eta: nan is not a number above 0"),
        ("RUN --probe-radius 0", "--probe-radius: 0 is not"),
        ("RUN --batch-size 1", "--batch-size: 1 is not a number at least 2"),
        ("RUN --seed -1", "--seed: -1 is not"),
        ("RUN --minutes -1", "--minutes: -1 is not"),
    ],
)
def test_what_cannot_be_measured_is_said(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        study.main(words.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
