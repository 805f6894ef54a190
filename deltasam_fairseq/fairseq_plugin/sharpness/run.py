"""What one training run keeps from update to update."""

from __future__ import annotations

import logging
from typing import Any

from deltasam_fairseq.core.perturb import Realised
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.sharpness.adding_up import AddingUp
from deltasam_fairseq.fairseq_plugin.sharpness.covered import RunCovered
from deltasam_fairseq.fairseq_plugin.sharpness.model_weights import ModelWeights
from deltasam_fairseq.fairseq_plugin.sharpness.sentence_norms import SentenceNorms
from deltasam_fairseq.per_instance import Engine

logger = logging.getLogger(__name__)

# What rounding leaves of a perturbation is measured for one perturbed update in so
# many, the first included. It costs a few passes over the weights.
MEASURE_EVERY = 100

# Below these, most of what moves the weights is not the perturbation.
LEAST_SHARE = 0.5
LEAST_COSINE = 0.5


class Run:
    """The settings of a run, its weights, and what was found out about them.

    Args:
        trainer: fairseq's trainer, with its optimizer built.
        settings: The run's settings.
        norms: What measures the norms of the sentences' gradients.

    Attributes:
        engine: The batched per-instance engine, once it was needed.
        needs_loop: Whether it was found not to be exact for this run.
        ambiguous_batches: How many batches went by the loop because they did not
            tell whose rows are whose.
    """

    def __init__(self, trainer: Any, settings: Sharpness, norms: SentenceNorms) -> None:
        self.settings = settings
        self.weights = ModelWeights(
            trainer.optimizer, settings, trainer.get_model(), trainer.get_criterion()
        )
        self.covered = RunCovered(self.weights.space, trainer.get_model(), trainer.get_criterion())
        self.adding_up = AddingUp(self.weights)
        self.norms = norms
        self.engine: Engine | None = None
        self.needs_loop = False
        self.ambiguous_batches = 0
        self._warned = False
        if settings.method == "delta_sam" and not self.probes_in_full:
            self._warn_of_coarse_weights()

    def engine_of(self, model: Any) -> Engine:
        """Return the run's engine, made when it is first needed.

        Args:
            model: The model, not wrapped.

        Returns:
            The engine.
        """
        if self.engine is None:
            self.engine = Engine(model, self.weights.space)
        return self.engine

    @property
    def probes_in_full(self) -> bool:
        """Whether the weights of Eq. 5 come from float32 passes."""
        return self.settings.probe_precision == "fp32" and self.weights.has_full_weights

    def _warn_of_coarse_weights(self) -> None:
        if self.settings.estimator == "finite_difference" and not self.weights.computes_in_full():
            logger.warning(
                "the sentence weights of Eq. 5 come from half-precision passes, where they are "
                "mostly rounding (docs/precision.md). Train with --fp16, --bf16, --amp or in fp32 "
                "and with --sam-probe-precision fp32, or with --sam-method sam"
            )

    def measures(self, update: int) -> bool:
        """Tell whether a perturbed update measures what rounding leaves of its perturbation.

        Args:
            update: Number of updates before it.

        Returns:
            True once in :data:`MEASURE_EVERY` perturbed updates.
        """
        return self.settings.perturbation(update) % MEASURE_EVERY == 0

    def note(self, realised: Realised | None) -> None:
        """Warn, once, if rounding leaves too little of the perturbation.

        Args:
            realised: What was measured, if anything was.
        """
        if realised is None or self._warned:
            return
        along = realised.share * realised.cosine
        if along < LEAST_SHARE or realised.cosine < LEAST_COSINE:
            self._warned = True
            logger.warning(
                "the weights are too coarse for --sam-rho %g: the perturbation as rounded is %.2f "
                "rho long, with a cosine of %.2f to the one asked for (less than %.1f of it "
                "survives, or most of what moves is rounding). Train with --amp or in fp32, or "
                "take a larger rho. This is said once; sam_realised and sam_realised_cos go on.",
                self.settings.rho,
                realised.share,
                realised.cosine,
                LEAST_SHARE,
            )
