"""Sharpness-aware training in a plain PyTorch loop.

    python examples/plain_pytorch.py [none|sam|delta_sam|per_instance]

The closure runs the forward pass alone and returns one loss per example; the passes, the
perturbation and the backward passes happen inside ``step``.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from deltasam_fairseq.core import DeltaSAM


def train(method: str, epochs: int = 30, seed: int = 0) -> list[float]:
    """Train a classifier of points in and around a circle.

    Args:
        method: ``none``, ``sam``, ``delta_sam`` or ``per_instance``.
        epochs: How often to go through the points.
        seed: Of points and weights.

    Returns:
        The mean loss of each epoch, in nats.
    """
    torch.manual_seed(seed)
    points = torch.randn(128, 2)
    classes = (points.square().sum(1) > 1.4).long()
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    inner = torch.optim.Adam(model.parameters(), lr=0.02)
    optimizer = DeltaSAM(inner, method=method, rho=0.05, model=model)
    score = nn.CrossEntropyLoss(reduction="none")
    means = []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(points)).view(-1, 16):
            optimizer.zero_grad()
            report = optimizer.step(lambda rows=rows: score(model(points[rows]), classes[rows]))
            total += report.losses.sum().item()
        means.append(total / len(points))
    return means


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "delta_sam"
    losses = train(chosen)
    print(f"{chosen}: loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last")
