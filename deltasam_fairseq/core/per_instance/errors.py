"""The one refusal of the batched engine."""

from __future__ import annotations

from deltasam_fairseq.errors import UserError


class Unsupported(UserError):
    """The batched engine cannot perturb this model exactly; the loop can.

    The message names the parameter and the operation. Nothing was added to any
    gradient when it is raised from the first pass.
    """
