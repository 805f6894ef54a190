"""The smallest real run: both models, all methods, two rounds."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
from typing import Any

import pytest
import torch

from deltasam_fairseq.benchmarks.measurement import CLOCKS
from deltasam_fairseq.cli import bench
from deltasam_fairseq.core.checks import METHODS

pytestmark = pytest.mark.fairseq

WORDS = (
    "step --json --size tiny --repeats 2 --slow-every 2 --warm-up 1 --threads 1 --seed 4".split()
)


@pytest.fixture(scope="module")
def ran() -> tuple[dict[str, Any], str]:
    """Return the record of a run, and what it said on the way."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert bench.run(parser.parse_args(WORDS)) == 0
    return json.loads(out.getvalue()), err.getvalue()


def test_both_models_and_all_methods_are_there(ran: tuple[dict[str, Any], str]) -> None:
    record, _ = ran
    assert [model["model"] for model in record["models"]] == ["translation", "classification"]
    for model in record["models"]:
        assert model["parameters"] * 4 == model["parameter_bytes"]
        assert "--optimizer delta_sam --sam-method METHOD --seed 4" in model["flags"]
        assert set(model["clocks"]) == set(CLOCKS)
        assert set(model["memory"]["peak_bytes"]) == set(METHODS)


def test_times_and_ratios_are_positive(ran: tuple[dict[str, Any], str]) -> None:
    for model in ran[0]["models"]:
        for times in model["clocks"].values():
            assert set(times["seconds"]) == set(METHODS)
            spreads = [*times["seconds"].values(), *times["passes"].values()]
            for base in ("none", "sam"):
                assert set(times["ratios"][base]) == set(METHODS)
                spreads += times["ratios"][base].values()
            assert all(0 < spread["min"] <= spread["max"] for spread in spreads)
            assert times["ratios"]["none"]["none"]["max"] == 1
            assert times["seconds"]["sam"]["n"] == 2
            assert times["seconds"]["per_instance"]["n"] == 1


def test_sam_runs_more_passes_than_none(ran: tuple[dict[str, Any], str]) -> None:
    # Processor time of one thread is steady enough for this much.
    for model in ran[0]["models"]:
        ratios = model["clocks"]["processor"]["ratios"]["none"]
        assert ratios["sam"]["median"] > 1
        assert ratios["per_instance"]["median"] > 1


def test_the_batch_is_the_one_that_was_ordered(ran: tuple[dict[str, Any], str]) -> None:
    translation, classification = (model["batch"] for model in ran[0]["models"])
    # Lengths 3, 4, 5 and 6; classification's have a start marker as well.
    assert translation == {"sentences": 4, "source_tokens": 18, "target_tokens": 18}
    assert classification == {"sentences": 4, "source_tokens": 22, "target_tokens": 0}


def test_a_perturbation_needs_a_copy_of_the_parameters(ran: tuple[dict[str, Any], str]) -> None:
    # The rest, a quarter of so small a model, is the saved random state.
    for model in ran[0]["models"]:
        extra = model["memory"]["extra_copies"]
        assert extra["none"] == 0
        assert 0.8 < extra["sam"] < 1.4
        assert 0.8 < extra["delta_sam"] < 1.4
        assert model["memory"]["forward_copies"] > 0


def test_progress_is_told_in_lines(ran: tuple[dict[str, Any], str]) -> None:
    lines = ran[1].splitlines()
    assert [line.partition(",")[0] for line in lines if "round" in line] == [
        f"{model}: round {number} of 2"
        for model in ("translation", "classification")
        for number in (1, 2)
    ]


def test_the_process_is_left_as_it_was(ran: tuple[dict[str, Any], str]) -> None:
    del ran
    assert gc.isenabled()
    assert logging.root.manager.disable == logging.NOTSET
    assert torch.is_grad_enabled()
