"""The smallest real run: both models, all methods, two rounds."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltasam_fairseq.benchmarks.plan import METHODS, Plan
from deltasam_fairseq.benchmarks.variants import CLOCKS
from deltasam_fairseq.benchmarks.workloads import WORKLOADS, Shape
from deltasam_fairseq.cli import bench

pytestmark = pytest.mark.fairseq

# bert_base and roberta_large differ from these in nothing but their sizes.
MODELS = ("translation", "classification", "minilm", "bart_large")
WORDS = (
    f"step --model {','.join(MODELS)} --json --size tiny --repeats 2 --slow-every 2 --warm-up 1 "
    "--threads 1 --seed 4"
)


@pytest.fixture(scope="module")
def ran() -> tuple[dict[str, Any], str]:
    """Return the record of a run, and what it said on the way."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert bench.run(parser.parse_args(WORDS.split())) == 0
    return json.loads(out.getvalue()), err.getvalue()


def test_every_model_has_the_times_and_the_memory_of_every_method(
    ran: tuple[dict[str, Any], str],
) -> None:
    record, _ = ran
    assert tuple(model["model"] for model in record["models"]) == MODELS
    assert record["checks"] == []  # no limit holds for so small a model
    for model in record["models"]:
        assert model["parameters"] * 4 == model["parameter_bytes"]
        assert "--optimizer delta_sam --sam-method METHOD --seed 4" in model["flags"]
        assert set(model["memory"]["peak_bytes"]) == set(METHODS)
        assert set(model["clocks"]) == set(CLOCKS)
        for times in model["clocks"].values():
            spreads = [*times["seconds"].values(), *times["passes"].values()]
            for base in ("none", "sam"):
                assert set(times["ratios"][base]) == set(METHODS)
                spreads += times["ratios"][base].values()
            assert all(0 < spread["min"] <= spread["max"] for spread in spreads)
            assert times["ratios"]["none"]["none"]["max"] == 1
            rounds = {method: spread["n"] for method, spread in times["seconds"].items()}
            assert rounds == {**dict.fromkeys(METHODS, 2), "per_instance_loop": 1}


def test_sam_runs_more_passes_than_none(ran: tuple[dict[str, Any], str]) -> None:
    # Processor time of one thread is steady enough for this much. The loop is left out:
    # with four sentences in so small a model it takes about as long as the batched engine.
    for model in ran[0]["models"]:
        ratios = model["clocks"]["processor"]["ratios"]["none"]
        assert ratios["sam"]["median"] > 1
        assert ratios["per_instance"]["median"] > 1


def test_the_batch_is_the_one_that_was_ordered(ran: tuple[dict[str, Any], str]) -> None:
    # Lengths 3, 4, 5 and 6; those of sentences with a class have a start marker as well.
    paired = {"sentences": 4, "source_tokens": 18, "target_tokens": 18}
    labelled = {"sentences": 4, "source_tokens": 22, "target_tokens": 0}
    for model in ran[0]["models"]:
        expected = paired if model["model"] in {"translation", "bart_large"} else labelled
        assert model["batch"] == expected
        assert model["width"] == 16


def test_a_perturbation_needs_a_copy_of_the_parameters(ran: tuple[dict[str, Any], str]) -> None:
    # The rest, a quarter of so small a model, is the saved random state.
    for model in ran[0]["models"]:
        extra = model["memory"]["extra_copies"]
        assert extra["none"] == 0
        # fairseq 0.12.2 has parameters that do not move: copies of the encoder layers'.
        assert 0.7 < extra["sam"] < 1.4
        over = model["memory"]["copies_over_sam"]
        assert over["per_instance"] == pytest.approx(extra["per_instance"] - extra["sam"])
        assert 0.7 < extra["delta_sam"] < 1.4
        assert model["memory"]["forward_copies"] > 0


@pytest.mark.parametrize(
    ("model", "tokens"), [("minilm", (5, 5)), ("bart_large", (7, 7)), ("translation", (7, 7))]
)
def test_a_shape_is_what_the_model_sees(
    model: str, tokens: tuple[int, int], tmp_path: Path
) -> None:
    from deltasam_fairseq.benchmarks.trainers import batch_of, build_trainer, flags_of, write

    workload = WORKLOADS[model]["tiny"].ordered(sentences=3, tokens=tokens[0])
    write(tmp_path, workload, seed=1)
    batch = batch_of(
        build_trainer(tmp_path, flags_of(workload, "none", seed=1, device=torch.device("cpu")))
    )
    assert batch["net_input"]["src_tokens"].shape == (3, tokens[0])
    assert batch["net_input"]["src_lengths"].tolist() == [tokens[0]] * 3
    if workload.paired:
        assert batch["net_input"]["prev_output_tokens"].shape == (3, tokens[1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_half_precision_several_micro_batches_and_the_time_that_nobody_works(device: str) -> None:
    from deltasam_fairseq.benchmarks.step import measure

    plan = Plan(
        models=("bart_large",),
        methods=METHODS[:4],
        size="tiny",
        repeats=1,
        threads=1,
        warm_up=1,
        update_freq=2,
        profile=True,
        device=device,
        precision="fp16",
    )
    found = measure("bart_large", plan, lambda _: None)
    assert found.batch == {"sentences": 8, "source_tokens": 36, "target_tokens": 36}
    assert found.parameter_bytes == 2 * found.parameters
    assert found.skipped == dict.fromkeys(plan.methods, 0)
    assert all(seconds > 0 for seconds in found.working.values())
    if device == "cuda":  # on a busy CPU an operator's time holds that of others
        assert found.working["sam"] > 1.2 * found.working["none"]


ONE = Plan(models=("minilm",), methods=("none",), size="tiny", threads=1, warm_up=1, device="cpu")


def test_an_update_that_overflows_is_counted_as_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    from deltasam_fairseq.benchmarks import trainers
    from deltasam_fairseq.benchmarks.step import measure
    from tests.support import fairseq_toys as toys

    toys.precision_without_gpu(monkeypatch)
    huge = "--fp16 --fp16-init-scale 1000000000 --fp16-scale-window 1000000"
    monkeypatch.setitem(trainers.PRECISION_FLAGS, "fp16", huge)
    plan = replace(ONE, repeats=2, precision="fp16")
    assert measure("minilm", plan, lambda _: None).skipped == {"none": 2}


def test_no_round_begins_after_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from deltasam_fairseq.benchmarks.step import measure

    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    said: list[str] = []
    plan = replace(ONE, repeats=5, seconds=15)
    # The clock is read once before, then before each round but the first.
    assert len(measure("minilm", plan, said.append).updates["none"]) == 2
    assert said[-1] == "minilm: --seconds 15 are over"


def test_targets_may_have_lengths_of_their_own(tmp_path: Path) -> None:
    from fairseq.data import data_utils

    from deltasam_fairseq.benchmarks.trainers import write

    shape = Shape(3, 8, 8, 50, target=(2, 4))
    write(tmp_path, replace(WORKLOADS["translation"]["tiny"], shape=shape), seed=1)
    sides = [
        data_utils.load_indexed_dataset(str(tmp_path / f"train.src-tgt.{side}"), None)
        for side in ("src", "tgt")
    ]
    assert [[len(row) for row in side] for side in sides] == [[8, 8, 8], [4, 3, 2]]


@pytest.mark.parametrize(
    ("model", "rows"),
    [("minilm", 30522), ("bert_base", 30522), ("roberta_large", 50265), ("bart_large", 50264)],
)
def test_vocabularies_have_the_size_of_the_published_ones(
    model: str, rows: int, tmp_path: Path
) -> None:
    from deltasam_fairseq.benchmarks.trainers import build_trainer, flags_of, write

    tiny, full = WORKLOADS[model]["tiny"], WORKLOADS[model]["default"]
    workload = replace(tiny, shape=replace(tiny.shape, words=full.shape.words))
    write(tmp_path, workload, seed=1)
    flags = flags_of(workload, "none", seed=1, device=torch.device("cpu"))
    trainer = build_trainer(tmp_path, flags)
    assert max(len(p) for p in trainer.model.parameters()) == rows


@pytest.mark.parametrize("size", ["default", "tiny"])
@pytest.mark.parametrize("model", WORKLOADS)
def test_width_and_positions_are_those_of_the_architecture(model: str, size: str) -> None:
    from fairseq import options
    from fairseq.models.transformer import DEFAULT_MAX_SOURCE_POSITIONS

    from deltasam_fairseq.benchmarks.trainers import flags_of

    workload = WORKLOADS[model][size]
    flags = flags_of(workload, "none", seed=1, device=torch.device("cpu"))
    args = options.parse_args_and_arch(options.get_training_parser(), ["data", *flags])
    assert args.encoder_embed_dim == workload.width
    name, left_out = "max_positions", None
    if workload.paired:
        name, left_out = "max_source_positions", DEFAULT_MAX_SOURCE_POSITIONS
    assert getattr(args, name, left_out) == workload.positions


def test_a_backward_pass_without_weight_gradients_leaves_none() -> None:
    from deltasam_fairseq.benchmarks.trainers import embedded

    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
    with embedded(model) as outputs:
        loss = model(torch.tensor([[1, 2]])).sum()
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient.shape == (1, 2, 4)
    assert all(p.grad is None for p in model.parameters())
    model(torch.tensor([[1]]))
    assert len(outputs) == 1


def test_progress_is_told_and_the_process_is_left_as_it_was(
    ran: tuple[dict[str, Any], str],
) -> None:
    lines = ran[1].splitlines()
    assert [line.partition(",")[0] for line in lines if "round" in line] == [
        f"{model}: round {number} of 2" for model in MODELS for number in (1, 2)
    ]
    assert gc.isenabled()
    assert logging.root.manager.disable == logging.NOTSET
    assert torch.is_grad_enabled()


def test_passes_of_regularizers_are_counted_and_shown() -> None:
    from deltasam_fairseq.benchmarks.record import record_of, surroundings
    from deltasam_fairseq.benchmarks.step import measure
    from deltasam_fairseq.benchmarks.table import table_of

    names = ("none", "sam", "delta_sam", "rdrop", "smart", "sam+r3f", "per_instance+rdrop")
    plan = Plan(
        models=("classification",), methods=names, repeats=1, warm_up=1, size="tiny", threads=1
    )
    found = measure("classification", plan, lambda _: None)
    passes = {name: (calls["forward"], calls["backward"]) for name, calls in found.calls.items()}
    assert passes == {
        "none": (1, 1),
        "sam": (2, 2),
        "delta_sam": (4, 2),
        "rdrop": (2, 2),
        "smart": (4, 3),
        "sam+r3f": (4, 4),
        "per_instance+rdrop": (4, 4),
    }
    table = table_of(record_of(plan, [found], surroundings()))
    assert table.splitlines()[5].split()[-2:] == ["F", "B"]
