"""Sharpness-aware training in Lightning, by manual optimization.

    python examples/lightning_manual.py [none|sam|delta_sam|per_instance]

Needs ``pip install lightning``.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deltasam_fairseq.core import DeltaSAM


class Circle(lightning.LightningModule):
    """A classifier of points in and around a circle.

    Args:
        method: ``none``, ``sam``, ``delta_sam`` or ``per_instance``.
    """

    def __init__(self, method: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.method = method
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Take one step on a batch."""
        points, classes = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        report = optimizer.step(
            lambda: nn.functional.cross_entropy(self.net(points), classes, reduction="none")
        )
        self.losses.append(report.losses.mean().item())

    def configure_optimizers(self) -> DeltaSAM:
        """Return the optimizer."""
        inner = torch.optim.Adam(self.parameters(), lr=0.02)
        return DeltaSAM(inner, method=self.method, rho=0.05, model=self.net, max_grad_norm=1.0)


def train(method: str, epochs: int = 30, seed: int = 0) -> list[float]:
    """Train the classifier.

    Args:
        method: ``none``, ``sam``, ``delta_sam`` or ``per_instance``.
        epochs: How often to go through the points.
        seed: Of points and weights.

    Returns:
        The mean loss of each batch, in nats.
    """
    torch.manual_seed(seed)
    points = torch.randn(128, 2)
    data = TensorDataset(points, (points.square().sum(1) > 1.4).long())
    model = Circle(method)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=16, shuffle=True))
    return model.losses


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "delta_sam"
    seen = train(chosen)
    print(f"{chosen}: loss {seen[0]:.3f} in the first batch, {seen[-1]:.3f} in the last")
