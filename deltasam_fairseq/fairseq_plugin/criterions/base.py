"""A criterion that owns its sentence losses."""

# No `from __future__ import annotations`: fairseq reads the types of a constructor.
from typing import Any, ClassVar

from fairseq.criterions import FairseqCriterion

from deltasam_fairseq.fairseq_plugin.criterions.readers import (
    Sample,
    SentenceLosses,
    sentence_losses_for,
)


class SentenceCriterion(FairseqCriterion):
    """A criterion of which only the losses of the sentences have to be written.

    A subclass defines :meth:`sentence_losses`, and ``reduce_metrics`` as in fairseq. Its loss is
    the sum of these losses, in training and in validation. Every method that needs one loss
    per sentence reads the same function, and the contract of readers
    (:mod:`~deltasam_fairseq.fairseq_plugin.criterions.readers`) is tested for every subclass.

    Attributes:
        dependence: Why the loss of a sentence depends on the other sentences of its batch;
            empty where it does not. ``--sam-method per_instance`` is refused with this reason,
            because a sentence by itself has another loss.
        unbatched: Why the batched per-instance engine would not be exact, which perturbs what
            the losses' own gradient passes through; empty where it is. Its loop runs then.
        mixes_workers: Whether the gradient of a worker's losses reaches the sentences of other
            workers, because the criterion collects what all workers have.
    """

    dependence: ClassVar[str] = ""
    unbatched: ClassVar[str] = ""
    mixes_workers: ClassVar[bool] = False

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        """Register the criterion among those with one loss per sentence, unless it is abstract."""
        super().__init_subclass__(**kwargs)
        if not abstract:
            sentence_losses_for(cls)(own_losses)

    def joins(self, trainer: Any) -> None:
        """Learn which run this is, before the first update; an impossible one is refused here.

        Args:
            trainer: fairseq's trainer, with its optimizer built.
        """
        del trainer

    def sentence_losses(self, model: Any, sample: Sample) -> SentenceLosses:
        """Score a batch, sentence by sentence.

        It may be called under ``torch.no_grad``: the probes of Eq. 5 are. A criterion that
        differentiates inside enables gradients itself. All its noise comes from the default
        generators, which are replayed from pass to pass.

        Args:
            model: The model, perhaps wrapped for several workers.
            sample: The batch; it is not changed.

        Returns:
            Losses ``(N,)`` in nats, with their graph; the sample size, which is the denominator
            of the gradient; and the logging output, whose ``loss`` is the losses' sum.

        Raises:
            NotImplementedError: If the subclass has no such method.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define sentence_losses")

    def forward(
        self, model: Any, sample: Sample, reduce: bool = True
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Add the losses up.

        Args:
            model: The model.
            sample: The batch.
            reduce: Whether to add them up at all.

        Returns:
            The sum or the losses, the sample size and the logging output.
        """
        read = self.sentence_losses(model, sample)
        return read.losses.sum() if reduce else read.losses, read.sample_size, read.logging_output

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Let fairseq add the outputs of several workers up: they are numbers or vectors."""
        return True


def own_losses(criterion: Any, model: Any, sample: Sample) -> SentenceLosses:
    """Read the losses that a criterion of the project computes itself."""
    read: SentenceLosses = criterion.sentence_losses(model, sample)
    return read
