import argparse
import shlex
from typing import Any

import pytest

from deltasam_fairseq.benchmarks.methods import METHOD_FLAGS, METHODS
from deltasam_fairseq.benchmarks.plan import BOTH, MODELS, Plan
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.choices import METHODS as KNOWN
from deltasam_fairseq.cli import bench
from deltasam_fairseq.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ("speech",)}, "--model: unknown name 'speech'. Known: bart_large, bert"),
        (
            {"methods": ("none", "delta_sma")},
            "--methods: unknown name 'delta_sma'; did you mean 'delta_sam'? Kn",
        ),
        ({"methods": ("sam", "delta_sam")}, "--methods must include none"),
        ({"methods": ("none", "sam", "sam")}, "--methods must name each of its values once"),
        ({"size": "huge"}, "--size: unknown name 'huge'. Known: default, narrow, tiny"),
        ({"device": "tpu"}, "--device: unknown name 'tpu'; did you mean 'cpu'? Known: cpu, cuda"),
        ({"clock": "sun"}, "--clock: unknown name 'sun'. Known: elapsed, processor"),
        ({"device": "cuda", "clock": "processor"}, "the GPU does the work"),
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"slow_every": 0}, "--slow-every must be at least 1, got 0"),
        ({"warm_up": 0}, "--warm-up must be at least 1, got 0"),
        ({"threads": -1}, "--threads must be at least 0, got -1"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"sentences": -1}, "--sentences must be at least 0, got -1"),
        ({"tokens": -1}, "--tokens must be at least 0, got -1"),
        ({"update_freq": 0}, "--update-freq must be at least 1, got 0"),
        ({"seconds": -1}, "--seconds must be at least 0, got -1"),
        ({"precision": "fp8"}, "--precision: unknown name 'fp8'. Known: bf16, fp16, fp32"),
        ({"device": "cpu", "precision": "bf16"}, "--precision bf16: fairseq has it on GPUs alone"),
        ({"tokens": 1}, "--tokens 1: a sentence of translation has 2 to 1024 tokens"),
        (
            {"models": ("bert_base", "classification"), "tokens": 129},
            "--tokens 129: a sentence of classification has 2 to 128 tokens",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_flag(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Plan(**values)
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


def test_the_loop_sits_most_rounds_out() -> None:
    plan = Plan(slow_every=3)
    taking_part = [number for number in range(8) if plan.takes_part("per_instance_loop", number)]
    assert taking_part == [0, 3, 6]
    for method in set(METHODS) - {"per_instance_loop"}:
        assert all(plan.takes_part(method, number) for number in range(8))


def test_every_method_of_the_plugin_is_measured() -> None:
    assert {flags.split()[0] for flags in METHOD_FLAGS.values()} == set(KNOWN)
    assert Plan().methods == METHODS


def test_a_shape_that_was_asked_for_counts_the_start_marker() -> None:
    plan = Plan(models=("minilm", "translation"), sentences=5, tokens=7)
    shape = plan.workload("minilm").shape
    assert (shape.sentences, shape.shortest, shape.longest) == (5, 6, 6)
    assert plan.workload("translation").shape.longest == 7
    assert plan.workload("minilm").shape.words == WORKLOADS["minilm"]["default"].shape.words


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", ["default", "tiny"])
def test_without_a_shape_the_batch_is_the_models_own(model: str, size: str) -> None:
    assert Plan(models=(model,), size=size).workload(model) == WORKLOADS[model][size]


def test_targets_of_a_shape_are_as_long_as_sources() -> None:
    own = WORKLOADS["bart_large"]["default"].shape
    assert own.target is not None
    assert own.target[1] < own.longest
    asked = Plan(models=("bart_large",), tokens=9).workload("bart_large").shape
    assert (asked.sentences, asked.shortest, asked.target) == (own.sentences, 9, None)


def test_all_cores_unless_told_otherwise() -> None:
    assert Plan().threads >= 1
    assert Plan(threads=3).threads == 3


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(models=BOTH[1:], methods=METHODS[:2], threads=1, size="tiny", seed=7, repeats=2),
        Plan(models=MODELS[2:], sentences=3, tokens=9),
        Plan(device="cpu", clock="processor", slow_every=2, warm_up=3),
        Plan(device="cpu", precision="fp16", update_freq=16, seconds=60, profile=True),
    ],
)
def test_the_command_of_a_plan_runs_it_again(plan: Plan) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = shlex.split(plan.command())
    assert words[:3] == ["deltasam", "bench", "step"]
    assert bench.plan_of(parser.parse_args(words[2:])) == plan


def test_the_command_line_has_the_defaults_of_a_plan() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.plan_of(parser.parse_args(["step"])) == Plan()
