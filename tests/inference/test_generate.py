from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

pytest.importorskip("fairseq")

from fairseq.ngram_repeat_block import NGramRepeatBlock  # noqa: E402

from deltasam_fairseq.inference.generate import (  # noqa: E402
    OneLineGpt2Bpe,
    block_repeats,
    mend_ngram_blocking,
)

pytestmark = pytest.mark.fairseq

VOCABULARY = 5


def banned_slowly(row: list[int], size: int) -> set[int]:
    """Try every token: would the last n-gram then be there twice?"""
    found = set()
    for token in range(VOCABULARY):
        longer = [*row, token]
        ngrams = [tuple(longer[i : i + size]) for i in range(len(longer) - size + 1)]
        if ngrams and ngrams[-1] in ngrams[:-1]:
            found.add(token)
    return found


@given(
    rows=st.integers(0, 9).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length),
            min_size=1,
            max_size=3,
        )
    ),
    size=st.integers(1, 4),
)
def test_exactly_the_repeating_tokens_are_blocked(rows: list[list[int]], size: int) -> None:
    tokens = torch.tensor(rows, dtype=torch.long).view(len(rows), -1)
    lprobs = block_repeats(tokens, torch.zeros(len(rows), VOCABULARY), size=size)
    for row, values in zip(rows, lprobs, strict=True):
        blocked = set(values.isinf().nonzero().flatten().tolist())
        assert blocked == banned_slowly(row, size)


@pytest.fixture
def mended() -> None:
    mend_ngram_blocking()


@pytest.mark.usefixtures("mended")
def test_fairseq_calls_it_with_its_buffer() -> None:
    # Beginning token 2, then 5 6 5; behind it, padding that has not been generated.
    tokens = torch.tensor([[2, 5, 6, 5, 1, 1, 1]])
    block = NGramRepeatBlock(2, use_extension=False)
    lprobs = block(tokens, torch.zeros(1, 8), bsz=1, beam_size=1, step=3)
    assert lprobs.isinf().nonzero().tolist() == [[0, 6]]


@pytest.mark.usefixtures("mended")
def test_the_end_is_never_blocked() -> None:
    tokens = torch.tensor([[2, 5, 1, 1]])
    block = NGramRepeatBlock(1, use_extension=False)
    lprobs = block(tokens, torch.zeros(1, 8), bsz=1, beam_size=1, step=1)
    assert lprobs.isinf().nonzero().tolist() == [[0, 5]]


def test_text_of_an_untrained_model_is_one_line() -> None:
    bpe = OneLineGpt2Bpe.__new__(OneLineGpt2Bpe)
    letters = {1: "a", 2: "\n", 3: " b"}
    bpe.bpe = SimpleNamespace(decode=lambda numbers: "".join(letters[n] for n in numbers))
    assert bpe.decode("1 madeupword0001 2 <unk> 3") == "a b"
    assert bpe.decode("<s>") == ""
