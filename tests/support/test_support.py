"""The helpers of the tests: comparisons that fail when they should, toys that are what they say."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Broken, Calls, mlp, transformer, vector_problem


def test_equal_tensors_are_close_and_the_same() -> None:
    tensors = {"w": torch.randn(2, 3), "nothing": torch.zeros(0), "nan": torch.tensor(torch.nan)}
    assert_close(tensors, copies(tensors), rtol=0)
    assert_same_bits(tensors, copies(tensors))
    assert_close(list(tensors.values()), tuple(tensors.values()), rtol=0)


def test_a_difference_is_reported_with_its_tensor_place_ratio_and_range() -> None:
    expected = {"same": torch.ones(2), "w": torch.arange(1.0, 7.0).reshape(2, 3)}
    actual = copies(expected)
    actual["w"][1, 0] = 8.0  # was 4
    actual["w"][0, 1] = 2.2  # was 2
    with pytest.raises(AssertionError) as error:
        assert_close(actual, expected, rtol=1e-6)
    text = str(error.value)
    assert "1 of 2 tensors not within rtol=1e-06, atol=0" in text
    assert "w: 2 of 6 entries; worst at (1, 0): 8, expected 4, ratio 2;" in text
    assert "actual in [1, 8], expected in [1, 6]" in text
    assert "same" not in text


def test_tolerances_are_of_the_expected_value() -> None:
    assert_close([torch.tensor(110.0)], [torch.tensor(100.0)], rtol=0.1001)
    assert_close([torch.tensor(1e-9)], [torch.tensor(0.0)], rtol=0, atol=1e-8)
    with pytest.raises(AssertionError):
        assert_close([torch.tensor(111.0)], [torch.tensor(100.0)], rtol=0.1001)
    with pytest.raises(AssertionError):
        assert_close([torch.tensor(1e-9)], [torch.tensor(0.0)], rtol=1e9)


def test_nan_is_the_worst_difference() -> None:
    with pytest.raises(AssertionError, match=r"2 of 3 entries; worst at \(2,\): nan"):
        assert_close([torch.tensor([0.0, 5.0, torch.nan])], [torch.zeros(3)], rtol=0)


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, r"\['a'\] are only in actual, \['b'\] only"),
        ([torch.ones(1)], [torch.ones(1)] * 2, r"\[\] are only in actual, \['1'\] only"),
        ([torch.ones(2)], [torch.ones(1, 2)], r"0: \(2,\) .* expected \(1, 2\)"),
        ([torch.ones(2)], [torch.ones(2).double()], "torch.float32 .* expected .*torch.float64"),
    ],
)
@pytest.mark.parametrize("compare", [assert_same_bits, lambda a, b: assert_close(a, b, rtol=1)])
def test_names_shapes_and_dtypes_must_agree(compare, actual, expected, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        compare(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0]), torch.tensor([1.0]).nextafter(torch.tensor([2.0]))),
        (torch.tensor([1.0]).bfloat16(), torch.tensor([1.0078125]).bfloat16()),
    ],
)
def test_one_bit_is_a_difference(actual: Tensor, expected: Tensor) -> None:
    with pytest.raises(AssertionError, match="bit-identical"):
        assert_same_bits([actual], [expected])
    assert_close([actual], [expected], rtol=1e-2)


def test_copies_do_not_follow() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    before = copies([weight])
    with torch.no_grad():
        weight.add_(1)
    assert before["0"].tolist() == [1, 1]


@pytest.mark.parametrize("make", [mlp, transformer])
def test_a_problem_is_one_function_of_its_weights(make) -> None:
    """``losses`` and ``losses_at`` agree, also away from the module's weights."""
    problem = make()
    torch.testing.assert_close(problem.losses(1)(), problem.losses_at(1)(problem.params))
    elsewhere = [w.detach() + 0.1 for w in problem.params]
    expected = problem.losses_at(1)(elsewhere)
    with torch.no_grad():
        for param, value in zip(problem.params, elsewhere, strict=True):
            param.copy_(value)
    torch.testing.assert_close(problem.losses(1)(), expected)


def test_the_transformer_has_a_tied_embedding_and_padded_sentences() -> None:
    problem = transformer()
    uses = dict(problem.model.named_parameters(remove_duplicate=False))
    assert uses["output.weight"] is uses["embedding.weight"]
    assert "output.weight" not in problem.named
    (tokens,) = problem.batches[0]
    assert (tokens == 0).any() and (tokens[:, :2] > 0).all()


@pytest.mark.parametrize("make", [mlp, transformer])
def test_dropout_makes_two_passes_differ(make) -> None:
    problem = make(dropout=0.5)
    assert not torch.equal(problem.losses()(), problem.losses()())
    still = make()
    assert torch.equal(still.losses()(), still.losses()())


def test_making_a_problem_does_not_draw_from_the_default_generator() -> None:
    before = torch.get_rng_state()
    mlp(), transformer()
    assert torch.equal(torch.get_rng_state(), before)


def test_calls_counts_and_fails_when_told_to() -> None:
    seen: list[int] = []
    closure = Calls(
        vector_problem(torch.ones(2), lambda w: w * 3).losses(), fail_at=2, before=seen.append
    )
    assert closure().tolist() == [3, 3]
    with pytest.raises(Broken, match="call 2"):
        closure()
    closure()
    assert (closure.count, seen) == (3, [1, 3])


def test_a_logger_that_dropped_a_line_before_shows_the_next_run() -> None:
    pytest.importorskip("fairseq")
    from tests.support import fairseq_toys as toys

    logger = logging.getLogger("fairseq.logging.progress_bar")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        logger.info("dropped, and remembered as such")
        with toys.logged() as log:
            logger.info("kept")
    finally:
        logger.setLevel(level)
    assert log.getvalue() == "kept\n"


def test_a_configuration_is_what_hydra_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fairseq")
    from fairseq.dataclass import utils

    from tests.support import fairseq_toys as toys
    from tests.support import quick_config

    adam = ("--optimizer", "adam", "--adam-betas", "(0.8, 0.9)", "--lr", "0.1,0.2")
    lines = [
        (*toys.TRANSLATION, "--seed", "5", "--wandb-project", "it's", "--update-freq", "1,2"),
        (*toys.TRANSLATION, "--fp16", "--sam-method", "none", "--clip-norm", "0.5"),
        (*toys.TRANSLATION, *adam),
        toys.PREDICTION,
    ]
    quick = [toys.config(Path("data"), *line) for line in [*lines, *lines]]
    monkeypatch.setattr(utils, "compose", quick_config.composed_by_hydra)
    monkeypatch.setattr(utils, "initialize", quick_config.initialized_by_hydra)
    hydras = [toys.config(Path("data"), *line) for line in lines]
    assert [str(config) for config in quick] == [str(config) for config in [*hydras, *hydras]]
