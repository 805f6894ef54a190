"""A per-instance step and the sentences' gradient norms, from the batched engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deltasam_fairseq.core.checks import one_of
from deltasam_fairseq.core.descent import everywhere, reduced
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.core.steps import StepReport
from deltasam_fairseq.per_instance.engine import Engine


def batched_per_instance_step(
    engine: Engine,
    losses_function: Callable[[], Tensor],
    *,
    rho: float,
    reduction: str = "mean",
) -> StepReport:
    """Give every sentence its own perturbation, all sentences at once (Eq. 2).

    The result is that of :func:`~deltasam_fairseq.core.steps.per_instance_step`
    without ``loss_of``: each sentence sees the dropout that it has in a pass over
    the whole batch.

    Args:
        engine: The engine of the model.
        losses_function: One forward pass of the batch, shape ``(N,)``, nats.
        rho: L2 norm of each sentence's perturbation, at least 0.
        reduction: ``mean`` or ``sum`` over sentences, of the descent.

    Returns:
        The report; ``gradient_norm`` is the mean over sentences.

    Refusals:
        ``Unsupported`` if the model has a use of a parameter that no layer rule
        covers; ``.grad``, the random generators and the buffers are as before.

    State:
        As for :func:`~deltasam_fairseq.core.steps.sam_step`.

    Cost:
        2 forward and 2 backward passes, one of these without weight gradients,
        and small products.

    Source:
        Zhou et al. 2022, Eq. 2.
    """
    one_of(reduction, "reduction", ("mean", "sum"))
    passes = Passes(engine.space, losses_function)
    try:
        with passes.restored():
            with passes.local():
                ascent = engine.ascend(passes, rho=rho)
            passes.leave()
            count, group = len(ascent.losses), passes.group
            reduce = reduced(reduction, group, everywhere(count, group, ascent.losses.device))
            fallbacks = int((~ascent.usable).sum())
            for attempt in range(2):
                with ascent.perturbed():
                    perturbed_losses = passes()
                lost = ~torch.isfinite(perturbed_losses.detach()) & torch.isfinite(ascent.losses)
                # Workers repeat a pass together: a wrapper's pass may wait for the others.
                if attempt or not everywhere(int(lost.sum()), group, perturbed_losses.device):
                    break
                # As in the loop: the gradient at w where there is none at w + eps.
                ascent.exclude(lost)
                fallbacks += int(lost.sum())
            if perturbed_losses.requires_grad:
                torch.autograd.backward(reduce(perturbed_losses))
    except BaseException:
        passes.rewind()
        raise
    norms = ascent.norms
    return StepReport(
        ascent.losses,
        perturbed_losses.detach(),
        torch.ones_like(ascent.losses),
        gradient_norm=norms.mean().item() if len(norms) else 0.0,
        floored=0,
        fallbacks=fallbacks,
    )


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
