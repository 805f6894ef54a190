"""The refusals of the batched engine."""

from __future__ import annotations

from deltasam_fairseq.errors import UserError


class Unsupported(UserError):
    """The batched engine cannot perturb this model, or this batch, exactly; the loop can.

    The message names the parameter and the operation. No gradient was touched
    when it is raised from the first pass, nor by
    :func:`~deltasam_fairseq.per_instance.batched_per_instance_step`. What a
    model does that is refused depends on the model, and is refused for every
    batch; :class:`AmbiguousBatch` alone speaks of one batch.
    """


class AmbiguousBatch(Unsupported):
    """One batch does not tell which rows belong to which sentence.

    The next batch may be fine: the engine stays usable, and what it has learned
    is right. A caller may run the loop for this batch and go on with the engine.
    """
