"""The study of precisions: Eq. 5 by hand, what each precision moves and rounds, a tiny run."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from deltasam_fairseq.core.noise import seed_for  # noqa: E402
from deltasam_fairseq.core.randomness import RandomState  # noqa: E402
from deltasam_fairseq.core.weight_space import WeightSpace  # noqa: E402
from scripts.studies import probe_precision as study  # noqa: E402
from scripts.studies.probe_precision import PRECISIONS, REFERENCE, Findings, Prober  # noqa: E402
from scripts.studies.subject import Subject, random_subject  # noqa: E402

CPU = torch.device("cpu")
NAMED = {precision.name: precision for precision in PRECISIONS}
ON_CPU = [precision for precision in PRECISIONS if not precision.tf32]


def tiny(batches: int = 1) -> Subject:
    return random_subject(Namespace(random="tiny", tokens=7, batches=batches, batch_size=6, seed=3))


def probe(subject: Subject, precisions: list[study.Precision], *radii: float) -> list[Findings]:
    return study.probe(subject, precisions, radii=radii, eta=1e-4, seed=7)


def test_float64_is_eq_5_by_hand() -> None:
    subject, eta = tiny(), 1e-4
    (found,) = probe(subject, [REFERENCE], 0.05)
    params = list(subject.model.parameters())
    drawn = WeightSpace(params).gaussian(radius=0.05, seed=seed_for(7, 0))
    losses = []
    for sign in (0, 1, -1):
        twin = copy.deepcopy(subject.model).double().eval()
        with torch.no_grad():
            for param, r in zip(twin.parameters(), drawn, strict=True):
                assert r is not None
                param.add_(r, alpha=sign)
            losses.append(subject.score(twin, subject.groups[0]))
    at, plus, minus = losses
    assert at.dtype == torch.float64
    bend, slope = (plus + minus - 2 * at).abs(), (plus - minus).abs()
    torch.testing.assert_close(found.bends[0], bend, rtol=1e-4, atol=1e-13)
    torch.testing.assert_close(found.slopes[0], slope, rtol=1e-6, atol=1e-13)
    torch.testing.assert_close(found.weights[0], bend / slope.clamp_min(eta), rtol=1e-4, atol=1e-9)


def test_all_precisions_are_compared_and_every_weight_is_put_back() -> None:
    subject = tiny(batches=2)
    before = [p.detach().clone() for p in subject.model.parameters()]
    found = probe(subject, ON_CPU, 0.05, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.model.parameters(), strict=True))
    by = {(f.precision.name, f.rho): f for f in found}
    assert len(by) == len(found) == 2 * len(ON_CPU)
    exact, single = by["float64", 0.5], by["fp32", 0.5]
    torch.testing.assert_close(single.bends[0], exact.bends[0], rtol=0.05, atol=1e-6)
    assert exact.references[0] is exact.weights[0]
    assert single.references[0] is exact.weights[0]
    # Dropout's masks are the same in both precisions, and they matter.
    dropped, single_dropped = by["float64, dropout on", 0.5], by["fp32, dropout on", 0.5]
    assert single_dropped.references[0] is dropped.weights[0]
    torch.testing.assert_close(single_dropped.bends[0], dropped.bends[0], rtol=0.05, atol=1e-6)
    assert not torch.allclose(dropped.bends[0], exact.bends[0], rtol=0.05)
    assert not torch.equal(exact.bends[0], exact.bends[1])  # its own direction
    for precision in ON_CPU:
        half = precision.weights in {torch.float16, torch.bfloat16}
        assert (by[precision.name, 0.05].realised is not None) == half
        if half or precision.autocast:
            bends = by[precision.name, 0.05].bends[0]
            assert not torch.equal(bends, by["fp32", 0.05].bends[0])


def test_masters_are_what_is_perturbed() -> None:
    subject = tiny()
    prober = Prober(subject, CPU, {torch.bfloat16})
    drawn = WeightSpace(prober.masters).gaussian(radius=1e-3, seed=1)
    moved = []
    for name in ("bf16, fp32 masters", "bf16, no masters"):
        with prober.moved(NAMED[name], drawn, measure=True) as side:
            moved.append([p.detach().clone() for p in prober._models[torch.bfloat16].parameters()])
            assert side.realised is not None
    steps = [r for r in drawn if r is not None]
    wanted = [(p + r).bfloat16() for p, r in zip(prober.masters, steps, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(moved[0], wanted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_a_half_product_has_sums_in_single_precision() -> None:
    left, right, bias = torch.randn(5, 64).half(), torch.randn(9, 64).half(), torch.randn(9).half()
    exact = left.double() @ right.double().T
    with study.HalfProducts():
        found = left @ right.T
        linear = torch.nn.functional.linear(left, right, bias)
        batched = torch.bmm(left[None], right.T[None])[0]
        assert (left.float() @ right.float().T).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.float16):
            assert torch.equal(left.float() @ right.float().T, found)
    # Half a unit in the last place, and what float32 sums add to that.
    for product, value in ((found, exact), (batched, exact), (linear, exact + bias.double())):
        assert product.dtype == torch.float16
        assert ((product.double() - value).abs() <= 2.0**-11 * value.abs() + 1e-4).all()


def test_the_model_in_half_is_close_to_pytorchs_own_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = tiny()
    prober = Prober(subject, CPU, {torch.float16})
    state = RandomState.capture(prober.masters)
    half, group = NAMED["fp16, no masters"], subject.groups[0]
    emulated, exact = (prober.losses(p, group, state) for p in (half, NAMED["fp32"]))
    monkeypatch.setattr(study.HalfProducts, "PRODUCTS", set())
    native = prober.losses(half, group, state)
    assert not torch.equal(emulated, exact)
    torch.testing.assert_close(emulated, native, rtol=5e-3, atol=5e-3)


@pytest.mark.gpu
def test_tf32_is_a_row_of_its_own_on_a_gpu() -> None:
    found = study.probe(
        tiny(), PRECISIONS, radii=[0.5], eta=1e-4, seed=1, device=torch.device("cuda")
    )
    assert len(found) == len(PRECISIONS)


def test_a_cell_counts() -> None:
    one = torch.tensor
    found = Findings(
        NAMED["fp32"],
        0.02,
        bends=[one([0.0, 2.0]), one([0.0, 0.0]), one([1.0, 3.0])],
        slopes=[one([1.0, 1e-5]), one([1.0, 1.0]), one([1.0, 1.0])],
        weights=[one([0.0, 2e4]), one([0.0, 0.0]), one([1.0, 3.0])],
        references=[one([1.0, 2.0]), one([1.0, 2.0]), one([2.0, 1.0])],
    )
    cell = found.cell(1e-4)
    assert cell["zero_numerators"] == 0.5
    assert cell["floored"] == pytest.approx(1 / 6, rel=1e-3)
    assert cell["rank"] == {"n": 2, "mean": 0.0, "sd": 1.41421, "values": [1.0, -1.0]}
    assert (cell["batches"], cell["all_zero_batches"], cell["unusable_batches"]) == (3, 1, 1)
    record = {
        "cells": [cell],
        "not_run": ["fp32 with TF32"],
        "settings": {"rho": [0.02], "eta": 1e-4, "device": "cpu", "seed": 1},
        "model": {"name": "m", "parameters": 1, "weights": "w", "text": "t", "mean_tokens": 2},
        "hardware": {"processor": "abacus"},
        "versions": {"torch": "2"},
    }
    table = study.tables([record])
    assert "| fp32 | 50 % | 0.0e+00 | 17 % | 0.00 ± 1.41 (n 2) | 1 | – |" in table
    assert "| fp32 with TF32 | not run | not run" in table


def test_a_tiny_run_is_the_same_twice_and_shown_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = "--random tiny --batches 1 --batch-size 4 --tokens 5 --threads 1 --no-dropout".split()
    study.main([*few, "--json"])
    text, said = capsys.readouterr()
    assert "batch 1 of 1" in said
    record = json.loads(text)
    assert record["not_run"] == ["fp32 with TF32", "float64, dropout on", "fp32, dropout on"]
    (tmp_path / "record.json").write_text(text)
    study.main(few)
    table = capsys.readouterr().out
    assert ": 1 batch of 4 sentences with 5 tokens on average" in table
    study.main(["--show", *2 * [str(tmp_path / "record.json")]])
    assert capsys.readouterr().out == f"{table}\n{table}"
