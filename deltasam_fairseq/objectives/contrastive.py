"""The contrastive loss of Mirror-BERT and SimCSE (InfoNCE, NT-Xent), one number per sentence.

van den Oord et al. (2018); as a loss of two views, Chen et al. (2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def info_nce(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    candidates: tuple[Tensor, Tensor] | None = None,
    start: int = 0,
) -> Tensor:
    """Tell each sentence's second view from the views of all other sentences, and back.

    Both views of a sentence are anchors. With z the normalised embeddings of the 2M candidates,
    τ the temperature and j the other view of the anchor's sentence, an anchor's loss is::

        -log( exp(zₐ·zⱼ/τ) / Σ_{k ≠ a} exp(zₐ·zₖ/τ) )

    Args:
        first: Embeddings of the first views, shape ``(N, D)``.
        second: Embeddings of the second views, shape ``(N, D)``.
        temperature: τ, positive.
        candidates: First and second views to choose from, shape ``(M, D)`` each, for instance
            those of all workers; the anchors' own views if it is left out.
        start: Row of the candidates in which the anchors' first sentence stands.

    Returns:
        Shape ``(N,)``, nats: the mean of a sentence's two anchors. Half-precision embeddings are
        compared in float32.

    Example:
        >>> views = torch.eye(3)
        >>> info_nce(views, views, temperature=0.5)
        tensor([0.4327, 0.4327, 0.4327])
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    anchors = F.normalize(torch.cat([first, second]).to(wide), dim=1)
    others = anchors if candidates is None else F.normalize(torch.cat(candidates).to(wide), dim=1)
    half = len(others) // 2
    rows = torch.arange(start, start + len(first), device=first.device)
    own, other = torch.cat([rows, rows + half]), torch.cat([rows + half, rows])
    scores = anchors @ others.T / temperature
    # An anchor is no candidate of its own.
    scores = scores.scatter(1, own.unsqueeze(1), -torch.inf)
    return F.cross_entropy(scores, other, reduction="none").view(2, -1).mean(0)
