"""What the slow twins need of a fairseq trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.core import reference
from deltasam_fairseq.fairseq_plugin.criterions.readers import token_losses
from tests.support import fairseq_toys as toys


def losses_at(trainer: Trainer, samples: Sequence[Any]) -> reference.LossesAt:
    """Return the per-sentence losses of some mini-batches as a function of weights."""
    model = toys.Functional(trainer.get_model())

    def losses(weights: Sequence[torch.Tensor]) -> torch.Tensor:
        model.at(weights)
        return torch.cat([token_losses(trainer.get_criterion(), model, s).losses for s in samples])

    return losses
