"""Everything that a user directory needs to import, and the only module with side effects.

It registers ``--optimizer delta_sam``, BERT and the criterions, and wraps fairseq's trainer; see
:mod:`~deltasam_fairseq.fairseq_plugin.hook`. In a user directory of your own::

    from deltasam_fairseq.fairseq_plugin import register  # noqa: F401
"""

from deltasam_fairseq.fairseq_plugin import optimizer
from deltasam_fairseq.fairseq_plugin.criterions import (
    infonce,
    label_smoothed,
    readers,
    sentence_prediction,
)
from deltasam_fairseq.fairseq_plugin.hook import install
from deltasam_fairseq.fairseq_plugin.models import bert
from deltasam_fairseq.fairseq_plugin.tasks import mirror

install()

__all__ = [
    "bert",
    "infonce",
    "label_smoothed",
    "mirror",
    "optimizer",
    "readers",
    "sentence_prediction",
]
