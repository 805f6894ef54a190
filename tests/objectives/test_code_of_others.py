"""Divergences against published code, where it is right; neither package is a dependency."""

from __future__ import annotations

import pytest
import torch

from deltasam_fairseq.objectives.divergences import divergence


def test_rdrops_loss_is_bert4torchs() -> None:
    theirs = pytest.importorskip("bert4torch.losses", reason="needs bert4torch and what it imports")
    first, second = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    losses = sum(
        torch.nn.functional.cross_entropy(view, labels, reduction="none")
        for view in (first, second)
    )
    alpha = 4.0
    ours = losses + alpha * divergence(first, second, forth=0.5, back=0.5)
    # It halves both terms, and means the divergence over the classes as well.
    published = theirs.RDropLoss(alpha=alpha * 3)(first, second, labels)
    torch.testing.assert_close(published, ours.mean() / 2)


def test_divergences_are_smart_pytorchs() -> None:
    theirs = pytest.importorskip("smart_pytorch", reason="needs smart-pytorch")
    p, q = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs.sym_kl_loss(p, q), divergence(p, q).sum())
    torch.testing.assert_close(
        theirs.kl_loss(p, q, reduction="sum"), divergence(p, q, forth=0.0).sum()
    )
