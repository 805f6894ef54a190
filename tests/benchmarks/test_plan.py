"""What a benchmark runs: what is refused, and commands that run it again."""

import argparse
import shlex
from typing import Any

import pytest

from deltasam_fairseq.benchmarks.plan import BOTH, METHODS, MODELS, LaunchesPlan, Plan
from deltasam_fairseq.benchmarks.variants import VARIANTS
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.choices import METHODS as KNOWN
from deltasam_fairseq.cli import bench
from deltasam_fairseq.cli.options import values_of
from deltasam_fairseq.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ("speech",)}, "--model: unknown name 'speech'. Known: bart_large, bert"),
        (
            {"methods": ("none", "delta_sma")},
            "--methods: unknown name 'delta_sma'; did you mean 'delta_sam'? Kn",
        ),
        ({"methods": ("none", "sam+delta_sam")}, "--methods: unknown name 'sam+delta_sam'"),
        ({"methods": ("sam", "delta_sam")}, "--methods must include none"),
        ({"methods": ("none", "sam", "sam")}, "--methods must name each of its values once"),
        ({"size": "huge"}, "--size: unknown name 'huge'. Known: default, narrow, tiny"),
        ({"device": "tpu"}, "--device: unknown name 'tpu'; did you mean 'cpu'? Known: cpu, cuda"),
        ({"clock": "sun"}, "--clock: unknown name 'sun'. Known: elapsed, processor"),
        ({"device": "cuda", "clock": "processor"}, "the GPU does the work"),
        ({"precision": "fp8"}, "--precision: unknown name 'fp8'. Known: bf16, fp16, fp32"),
        ({"device": "cpu", "precision": "bf16"}, "--precision bf16: fairseq has it on GPUs alone"),
        ({"tokens": 1}, "--tokens 1: a sentence of translation has 2 to 1024 tokens"),
        (
            {"models": ("bert_base", "classification"), "tokens": 129},
            "--tokens 129: a sentence of classification has 2 to 128 tokens",
        ),
    ],
)
def test_a_step_that_cannot_be_run_is_refused_by_its_flag(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        Plan(**values)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("plan", "flags", "least"),
    [
        (Plan, ("--repeats", "--slow-every", "--warm-up", "--update-freq"), 1),
        (Plan, ("--threads", "--seed", "--sentences", "--tokens", "--seconds"), 0),
        (LaunchesPlan, ("--warm-up",), 2),
        (LaunchesPlan, ("--repeats", "--seed"), 0),
    ],
)
def test_a_number_that_is_too_small_is_refused_by_its_flag(
    plan: type, flags: tuple[str, ...], least: int
) -> None:
    for flag in flags:
        name = flag[2:].replace("-", "_")
        with pytest.raises(UserError, match=f"^{flag} must be at least {least}, got {least - 1}$"):
            plan(**{name: least - 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ("speech",)}, "--model: unknown name 'speech'"),
        ({"methods": ("none", "per_instance_loop")}, "--methods: unknown name"),
        ({"methods": ("sam",)}, "--methods must include none"),
        ({"size": "huge"}, "--size: unknown name 'huge'. Known: default, narrow, tiny"),
    ],
)
def test_a_count_that_cannot_be_run_is_refused_by_its_flag(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        LaunchesPlan(**values)
    assert message in str(refused.value)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        Plan(device="cuda")


def test_the_device_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert Plan().device == device
        assert Plan(clock="processor").device == "cpu"


def test_all_cores_unless_told_otherwise() -> None:
    assert Plan().threads >= 1
    assert Plan(threads=3).threads == 3


def test_every_method_of_the_plugin_is_measured() -> None:
    assert set(VARIANTS) == {*KNOWN, "per_instance_loop"}
    assert {variant.flags.split()[0] for variant in VARIANTS.values()} == set(KNOWN)
    assert Plan().methods == METHODS == tuple(VARIANTS)
    assert LaunchesPlan().methods == KNOWN


def test_a_shape_that_was_asked_for_counts_the_start_marker() -> None:
    default = WORKLOADS["minilm"]["default"]
    shape = default.ordered(sentences=5, tokens=7).shape
    assert (shape.sentences, shape.shortest, shape.longest) == (5, 6, 6)
    assert shape.words == default.shape.words
    assert WORKLOADS["translation"]["default"].ordered(tokens=7).shape.longest == 7
    assert default.ordered() == default


def test_targets_of_a_shape_are_as_long_as_sources() -> None:
    own = WORKLOADS["bart_large"]["default"]
    assert own.shape.target == (128, 128)
    asked = own.ordered(tokens=9).shape
    assert (asked.sentences, asked.shortest, asked.target) == (own.shape.sentences, 9, None)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(models=BOTH[1:], methods=METHODS[:2], threads=1, size="tiny", seed=7, repeats=2),
        Plan(models=MODELS[2:], sentences=3, tokens=9),
        Plan(device="cpu", clock="processor", slow_every=2, warm_up=3),
        Plan(device="cpu", precision="fp16", update_freq=16, seconds=60, profile=True),
        LaunchesPlan(),
        LaunchesPlan(models=("minilm",), warm_up=3),
        LaunchesPlan(models=BOTH, methods=("none", "sam")),
    ],
)
def test_the_command_of_a_plan_runs_it_again(plan: Plan | LaunchesPlan) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = shlex.split(plan.command())
    benchmark = "step" if isinstance(plan, Plan) else "launches"
    assert words[:3] == ["deltasam", "bench", benchmark]
    for typed, expected in ((words[2:], plan), ([benchmark], type(plan)())):
        values = values_of(type(plan), parser.parse_args(typed))
        assert type(plan)(**values) == expected


def test_options_that_most_runs_do_without_are_left_out_of_a_command() -> None:
    command = Plan(methods=("none", "sam"), threads=1, device="cpu").command()
    assert command == (
        "deltasam bench step --model both --methods none,sam --repeats 15 --slow-every 5 "
        "--warm-up 2 --threads 1 --size default --seed 1 --device cpu --clock elapsed"
    )
