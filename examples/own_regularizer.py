"""A regularizer of one's own, one function; import this module from a user directory.

--criterion deltasam_sentence_prediction --regularizer confidence --regularizer-weight 0.1
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812

from deltasam_fairseq.objectives.regularizers import REGULARIZERS, Batch, Regularized, Settings


@REGULARIZERS.register("confidence")
def confidence(batch: Batch, settings: Settings) -> Regularized:
    """Minus the entropy of each sentence's classes (Pereyra et al. 2017)."""
    del settings
    (view,) = batch.views(1)
    scores = F.log_softmax(view.logits.float(), -1)
    return Regularized(batch.losses(view), (scores.exp() * scores).sum(-1), (view,))
