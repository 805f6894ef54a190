import pytest

from deltasam_fairseq.benchmarks.cost_model import (
    PASSES,
    PassSeconds,
    predicted_ratio,
    predicted_seconds,
)
from deltasam_fairseq.benchmarks.methods import METHODS

UNEVEN = PassSeconds(forward_no_grad=0.5, forward=0.75, backward=1.25, backward_no_weights=0.625)


def test_every_pass_of_a_method_is_counted_once() -> None:
    assert predicted_seconds("none", UNEVEN) == 0.75 + 1.25
    assert predicted_seconds("sam", UNEVEN) == 2 * (0.75 + 1.25)
    assert predicted_seconds("delta_sam", UNEVEN) == 2 * 0.5 + 2 * (0.75 + 1.25)
    assert predicted_seconds("per_instance", UNEVEN) == 2 * 0.75 + 1.25 + 0.625


def test_sam_is_twice_none_whatever_the_passes_take() -> None:
    assert predicted_ratio("sam", "none", UNEVEN) == 2


def test_delta_sam_over_sam_is_one_and_the_forward_share() -> None:
    assert UNEVEN.forward_share == 0.25
    assert predicted_ratio("delta_sam", "sam", UNEVEN) == 1.25


def test_forward_over_backward_is_that_of_an_ordinary_update() -> None:
    assert UNEVEN.forward_over_backward == 0.6


def test_the_batched_engine_saves_the_weight_gradients_of_one_pass() -> None:
    saved = (UNEVEN.backward - UNEVEN.backward_no_weights) / (2 * 0.75 + 2 * 1.25)
    assert predicted_ratio("per_instance", "sam", UNEVEN) == 1 - saved


def test_the_loop_has_no_prediction_and_all_others_have() -> None:
    assert set(METHODS) - set(PASSES) == {"per_instance_loop"}
    assert predicted_seconds("per_instance_loop", UNEVEN) is None
    assert predicted_ratio("per_instance_loop", "none", UNEVEN) is None
    assert predicted_ratio("none", "per_instance_loop", UNEVEN) is None


@pytest.mark.parametrize("method", PASSES)
def test_a_method_takes_as_long_as_itself(method: str) -> None:
    assert predicted_ratio(method, method, UNEVEN) == 1
