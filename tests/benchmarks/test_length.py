"""The length benchmark: what it runs, its record, its table and its figure."""

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltasam_fairseq.benchmarks.encoder import Encoder, Problem
from deltasam_fairseq.benchmarks.length import STRATEGIES, LengthMeasurement, take_turns
from deltasam_fairseq.benchmarks.length_plan import LengthPlan
from deltasam_fairseq.benchmarks.length_record import length_record_of, length_table_of
from deltasam_fairseq.benchmarks.measurement import CLOCKS, Times
from deltasam_fairseq.benchmarks.record import surroundings
from deltasam_fairseq.cli import bench
from deltasam_fairseq.cli.bench_length import length_plan_of
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.per_instance import Engine, batched_per_instance_step
from deltasam_fairseq.per_instance.factors import Outer, Rows

SMALL = (
    "length --json --width 8 --heads 2 --layers 1 --words 20 --lengths 2,8 --batch-tokens 17 "
    "--repeats 2 --threads 1 --clock processor"
)


def parsed(words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words.split())


def made_up() -> list[LengthMeasurement]:
    """Return two lengths whose ratios are known, in a round and in one twice as slow."""

    def rounds(seconds: float) -> list[Times]:
        return [Times(seconds, seconds / 2), Times(2 * seconds, seconds)]

    factors = {"sam": 1.0, "thin": 1.5, "formed": 3.0, "plan": 1.25}
    return [
        LengthMeasurement(tokens, 64 // tokens, {name: rounds(f) for name, f in factors.items()})
        for tokens in (16, 64)
    ]


def record() -> dict[str, Any]:
    plan = LengthPlan(lengths=(16, 64), batch_tokens=64, repeats=2, threads=1)
    return length_record_of(plan, made_up(), surroundings())


def test_a_run_measures_every_length_and_strategy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "lengths.svg"
    assert bench.run(parsed(f"{SMALL} --plot {figure}")) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [(one["tokens"], one["sentences"]) for one in found["lengths"]] == [(2, 8), (8, 2)]
    for one in found["lengths"]:
        for clock in CLOCKS:
            times = one["clocks"][clock]
            assert set(times["ratios"]) == set(STRATEGIES)
            assert set(times["seconds"]) == {"sam", *STRATEGIES}
            assert all(
                spread["n"] == 2 and spread["min"] > 0 for spread in times["ratios"].values()
            )
    assert len(err.splitlines()) == 2
    assert figure.read_text().startswith("<?xml")


def test_the_strategies_are_the_two_ends_and_the_choice() -> None:
    square = torch.Size((8, 8))
    for tokens in (1, 1000):
        use = Outer(torch.zeros(1, tokens, 8), torch.zeros(1, tokens, 8))
        assert not STRATEGIES["thin"].forms_gradients([use], square)
        assert STRATEGIES["formed"].forms_gradients([use], square)
    # The rows of an embedding are few beside its matrix, which would fill the memory.
    words = Rows(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, 8))
    assert not STRATEGIES["formed"].forms_gradients([words], torch.Size((1000, 8)))
    assert STRATEGIES["plan"] == Engine(torch.nn.Linear(1, 1)).plan


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_computes_the_same_gradient(name: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(layers=1, width=8, heads=2, words=20).double()
    problem = Problem(encoder, sentences=3, tokens=5)
    gradients = []
    for plan in (STRATEGIES["plan"], STRATEGIES[name]):
        encoder.zero_grad()
        batched_per_instance_step(Engine(encoder, plan=plan), problem.losses, rho=0.05)
        gradients.append(
            torch.cat([p.grad.flatten() for p in problem.params if p.grad is not None])
        )
    torch.testing.assert_close(gradients[1], gradients[0])


def test_turns_leave_the_model_as_it_was() -> None:
    encoder = Encoder(layers=1, width=8, heads=2, words=20)
    before = [p.detach().clone() for p in encoder.parameters()]
    problem = Problem(encoder, sentences=2, tokens=3)
    found = take_turns(problem, {"plan": STRATEGIES["plan"]}, repeats=3)
    assert {name: len(times) for name, times in found.items()} == {"sam": 3, "plan": 3}
    for old, new in zip(before, encoder.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.grad is None


def test_one_loss_for_every_sentence_whatever_the_others_are() -> None:
    encoder = Encoder(layers=2, width=8, heads=2, words=20).double()
    problem = Problem(encoder, sentences=4, tokens=3)
    losses = problem.losses()
    problem.tokens, problem.classes = problem.tokens[:1], problem.classes[:1]
    torch.testing.assert_close(problem.losses(), losses[:1])


def test_ratios_are_taken_within_rounds() -> None:
    found = json.loads(json.dumps(record(), allow_nan=False))
    for one in found["lengths"]:
        for clock in CLOCKS:
            ratios = one["clocks"][clock]["ratios"]
            assert {name: r["median"] for name, r in ratios.items()} == {
                "thin": 1.5, "formed": 3.0, "plan": 1.25
            }  # fmt: skip
            assert ratios["thin"]["min"] == ratios["thin"]["max"]
        assert one["clocks"]["elapsed"]["seconds"]["sam"]["max"] == 2.0
        assert one["clocks"]["processor"]["seconds"]["sam"]["max"] == 1.0


def test_the_table_says_what_the_record_says() -> None:
    lines = [line.split() for line in length_table_of(record()).splitlines()]
    assert ["16", "4", "1.500", "3.000", "1.250", "1.50"] in lines
    assert ["64", "1", "1.500", "3.000", "1.250", "1.50"] in lines


def test_where_products_cost_the_same_is_what_the_derivation_says() -> None:
    plan = LengthPlan(width=40, heads=4, threads=1, lengths=(16, 64), batch_tokens=64)
    text = length_table_of(length_record_of(plan, made_up(), surroundings()))
    for height, tokens in ((40, 20), (160, 32)):
        assert math.isclose(tokens, 40 * height / (40 + height))
        assert f"{tokens} (" in text or f"{tokens} tokens" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "--width must be at least 1, got 0"),
        ({"heads": 7}, "--width 384 is not divisible by --heads 7"),
        ({"lengths": ()}, "--lengths must name each length once"),
        ({"lengths": (4, 4)}, "--lengths must name each length once"),
        ({"lengths": (0,)}, "--lengths: 0 is not between 1 and --batch-tokens 1024"),
        ({"batch_tokens": 512}, "--lengths: 1024 is not between 1 and --batch-tokens 512"),
        ({"warm_up": 1}, "--warm-up must be at least 2, got 1"),
        ({"device": "tpu"}, "--device: unknown name 'tpu'; did you mean 'cpu'? Known: cpu, cuda"),
        ({"clock": "sun"}, "--clock: unknown name 'sun'. Known: elapsed, processor"),
        ({"device": "cuda", "clock": "processor"}, "the GPU does the work"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_flag(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        LengthPlan(**values)
    assert message in str(refused.value)


def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = "deltasam_fairseq.benchmarks.length.measure_lengths"
    monkeypatch.setattr(measure, lambda *args: pytest.fail("measured"))
    with pytest.raises(UserError, match="lengths.txt: a figure ends in .png, .pdf or .svg"):
        bench.run(parsed(f"{SMALL} --plot lengths.txt"))


def test_a_length_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="--lengths must be numbers"):
        length_plan_of(parsed("length --lengths 16,long"))


@pytest.mark.parametrize(
    "plan", [LengthPlan(), LengthPlan(width=768, lengths=(8, 64), threads=1, clock="processor")]
)
def test_the_command_of_a_plan_runs_it_again(plan: LengthPlan) -> None:
    words = shlex.split(plan.command())
    assert words[:3] == ["deltasam", "bench", "length"]
    assert length_plan_of(parsed(" ".join(words[2:]))) == plan
    assert length_plan_of(parsed("length")) == LengthPlan()


def test_it_runs_without_fairseq() -> None:
    code = (
        "import sys; sys.modules['fairseq'] = None; import deltasam_fairseq.benchmarks.length, "
        "deltasam_fairseq.benchmarks.length_record, deltasam_fairseq.benchmarks.length_plot"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
