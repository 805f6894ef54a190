"""InfoNCE against a loop over anchors, and against sentence-transformers' loss where it is."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deltasam_fairseq.objectives.contrastive import info_nce


def views(sentences: int = 5, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = torch.randn(2, sentences, width, dtype=torch.float64, generator=draw)
    return made[0].requires_grad_(), made[1].requires_grad_()


def by_loop(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The loss of each sentence, one anchor and one candidate at a time."""
    count = len(first)
    everything = [*first, *second]

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt())

    def anchor_loss(anchor: int) -> Tensor:
        positive = (anchor + count) % (2 * count)
        scores = {
            k: cosine(everything[anchor], everything[k]) / temperature
            for k in range(2 * count)
            if k != anchor
        }
        total = sum(torch.exp(score) for score in scores.values())
        return -torch.log(torch.exp(scores[positive]) / total)

    return torch.stack([(anchor_loss(i) + anchor_loss(i + count)) / 2 for i in range(count)])


@pytest.mark.parametrize("temperature", [0.04, 1.0])
def test_losses_and_gradients_are_those_of_the_loop(temperature: float) -> None:
    first, second = views()
    fast, slow = (
        info_nce(first, second, temperature=temperature),
        by_loop(first, second, temperature),
    )
    torch.testing.assert_close(fast, slow)
    weights = torch.linspace(0.5, 2, len(fast), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), [first, second]),
        torch.autograd.grad((slow * weights).sum(), [first, second]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_share_of_the_anchors_has_its_share_of_the_losses() -> None:
    first, second = views()
    whole = info_nce(first, second, temperature=0.2)
    shares = [
        info_nce(
            first[rows], second[rows], temperature=0.2, candidates=(first, second), start=rows.start
        )
        for rows in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(shares), whole)


def test_one_sentence_has_nothing_to_be_told_apart_from() -> None:
    assert info_nce(*views(1), temperature=0.04).item() == 0.0


def test_half_precision_is_compared_in_float32() -> None:
    first, second = (view.detach().bfloat16() for view in views())
    losses = info_nce(first, second, temperature=0.04)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, info_nce(first.float(), second.float(), temperature=0.04))


def test_the_symmetric_loss_of_sentence_transformers_counts_no_views_of_one_side() -> None:
    """Its symmetric form has N candidates per anchor, the other side's; NT-Xent has 2N - 1.

    Where the views of one side are orthogonal to each other, the others add a known term.
    """
    first, _ = views(4, 16)
    first = torch.linalg.qr(first.detach().T)[0].T
    temperature = 0.5
    scores = F.normalize(first) @ F.normalize(first).T / temperature
    labels = torch.arange(4)
    theirs = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
    ours = info_nce(first, first, temperature=temperature).mean()
    # exp(ours) counts the three other views of the anchor's own side as well, at cosine 0.
    expected = torch.log(theirs.exp() + 3 / math.exp(1 / temperature))
    torch.testing.assert_close(ours, expected)
