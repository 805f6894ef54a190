import pytest

from deltasam_fairseq.evaluation.baselines import lead, median_words, most_frequent


def test_lead_takes_the_first_words() -> None:
    assert lead(["a b c d", "e"], words=3) == ["a b c", "e"]


def test_the_most_frequent_target_is_repeated_and_ties_go_to_the_first() -> None:
    assert most_frequent(["b", "a", "a", "b", "c"], count=3) == ["b", "b", "b"]


@pytest.mark.parametrize(
    ("targets", "words"), [(["a", "a b c", "a b"], 2), (["a b", "a b c"], 2), ([""], 1)]
)
def test_median_words(targets: list[str], words: int) -> None:
    assert median_words(targets) == words
