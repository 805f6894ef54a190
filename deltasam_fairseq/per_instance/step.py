"""A per-instance step and the sentences' gradient norms, from the batched engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deltasam_fairseq.core.batches import Batches, LossesFunctions, add_gradients, joined
from deltasam_fairseq.core.checks import one_of
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.steps import StepReport
from deltasam_fairseq.per_instance.engine import Dealing, Engine
from deltasam_fairseq.per_instance.errors import AmbiguousBatch, Unsupported


def batched_per_instance_step(
    engine: Engine,
    losses_function: LossesFunctions,
    *,
    rho: float,
    reduction: str = "mean",
    loss_scale: float | None = None,
    groups: Dealing | None = None,
) -> StepReport:
    """Give every sentence its own perturbation, all sentences of a batch at once (Eq. 2).

    The result is that of :func:`~deltasam_fairseq.core.per_instance_step`
    without ``loss_of``: each sentence sees the dropout that it has in a pass over
    the whole batch.

    Args:
        engine: The engine of the model.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats, or of
            each batch of the update.
        rho: L2 norm of each sentence's perturbation, at least 0.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.
        loss_scale: Factor on the gradients, for half precision.
        groups: Which sentences of a batch share a perturbation; see
            :meth:`~deltasam_fairseq.per_instance.Engine.ascend`. The result is then that of
            :func:`~deltasam_fairseq.core.grouped_step` on each batch.

    Returns:
        The report; ``gradient_norm`` is the mean over perturbations.

    Refusals:
        ``Unsupported`` if the model has a use of a parameter that no layer rule
        covers; ``.grad``, the random generators and the buffers are as before. Under
        DistributedDataParallel all workers refuse if one does.

    Raises:
        RuntimeError: If it is too late for that, in the pass that the others wait for.

    State:
        As for :func:`~deltasam_fairseq.core.sam_step`.

    Cost:
        2 forward and 2 backward passes, one of these without weight gradients,
        and small products.

    Source:
        Zhou et al. 2022, Eq. 2.
    """
    one_of(reduction, "reduction", ("mean", "sum"))
    batches = Batches(engine.space, losses_function)
    update = _Update(engine, batches, rho, loss_scale, groups)
    try:
        with batches.restored():
            perturbed_losses, _ = add_gradients(
                batches, update.score, reduction=reduction, loss_scale=update.factor
            )
    except BaseException as error:
        batches.rewind()
        if isinstance(error, Unsupported):
            if not update.agreed:
                update.agree(error)
            elif batches.group is not None and not update.is_refused:
                raise RuntimeError(
                    "the batched engine refused the pass that the other workers wait for; take "
                    f'the loop (engine="loop"): {error}'
                ) from error
        raise
    losses, norms = joined(update.losses), joined(update.norms)
    return StepReport(
        losses,
        perturbed_losses,
        torch.ones_like(losses),
        gradient_norm=norms.mean().item() if len(norms) else 0.0,
        floored=0,
        fallbacks=update.fallbacks,
        overflow=update.overflow,
    )


class _Update:
    """Both passes of each batch of an update."""

    def __init__(
        self,
        engine: Engine,
        batches: Batches,
        rho: float,
        loss_scale: float | None,
        groups: Dealing | None,
    ) -> None:
        self.engine, self.batches, self.rho, self.groups = engine, batches, rho, groups
        self.factor = 1.0 if loss_scale is None else loss_scale
        self.overflow = self.agreed = self.is_refused = False
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.fallbacks = 0
        self._may_overflow = loss_scale is not None

    def score(self, passes: Passes) -> Tensor:
        """Return a batch's losses, of each sentence at its perturbed weights."""
        with passes.local():
            ascent = self.engine.ascend(
                passes, rho=self.rho, loss_scale=self.factor, groups=self.groups
            )
        passes.leave()
        fine = torch.isfinite(ascent.losses)
        if self._may_overflow:
            self.overflow |= bool(ascent.overflows)
        self.losses.append(ascent.losses)
        self.norms.append(ascent.mean_norms)
        is_last = len(self.losses) == len(self.batches)
        if is_last:
            self.agree()
        for attempt in range(2):
            with ascent.perturbed():
                losses = passes()
            lost = ~torch.isfinite(losses.detach()) & fine
            again = bool(lost.any())
            if is_last and not attempt:
                # Workers repeat a pass together: a wrapper's pass may wait for the others.
                again = self.batches.everywhere(again) != [0]
            if attempt or not again:
                break
            # As in the loop: the gradient at w where there is none at w + eps.
            ascent.exclude(lost)
        self.fallbacks += int((~ascent.usable).sum())
        return losses

    def agree(self, refused: Unsupported | None = None) -> None:
        """Find with the other workers whether the update goes on.

        Before the pass whose gradients they reduce: no worker may leave that one.

        Args:
            refused: Why this worker cannot go on.

        Raises:
            Unsupported: If another worker cannot go on, with this model.
            AmbiguousBatch: If it cannot with its batch.
        """
        self.agreed = True
        of_batch = isinstance(refused, AmbiguousBatch)
        overflow, models, batches = self.batches.everywhere(
            self.overflow, refused is not None and not of_batch, of_batch
        )
        self.overflow = overflow > 0
        self.is_refused = models + batches > 0
        if self.is_refused:
            self.batches.let_workers_start_over()
        if models and (refused is None or of_batch):
            raise Unsupported("another worker cannot perturb the model exactly")
        if batches and refused is None:
            raise AmbiguousBatch("another worker's batch does not tell which rows are whose")


def per_sentence_gradient_norms(
    model: nn.Module,
    losses_function: Callable[[], Tensor],
    params: Sequence[Tensor] | None = None,
    *,
    loss_scale: float = 1.0,
) -> Tensor:
    """Return the norm of every sentence's gradient, from one forward and backward pass.

    Args:
        model: The model.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        params: The parameters to differentiate by; all that train when left out.
        loss_scale: Factor on the losses in the backward pass, for gradients of
            half precision; the norms are those without it.

    Returns:
        ``|grad l_i(w)|``, shape ``(N,)``, float64.

    Refusals:
        ``Unsupported`` if the model has a use of a parameter that no layer rule
        covers.

    Example:
        ``l_i = w x_i`` has the gradient ``x_i``:

        >>> layer = nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[3.0], [-4.0]])
        >>> per_sentence_gradient_norms(layer, lambda: layer(x)[:, 0])
        tensor([3., 4.], dtype=torch.float64)
    """
    return Engine(model, params).ascend(losses_function, rho=0.0, loss_scale=loss_scale).norms
