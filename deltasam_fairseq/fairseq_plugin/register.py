"""Everything that a user directory needs to import, and the only module with side effects.

It registers ``--optimizer delta_sam``, BERT and its criterion, and wraps fairseq's trainer; see
:mod:`~deltasam_fairseq.fairseq_plugin.hook`. In a user directory of your own::

    from deltasam_fairseq.fairseq_plugin import register  # noqa: F401
"""

from deltasam_fairseq.fairseq_plugin import optimizer, sentence_losses
from deltasam_fairseq.fairseq_plugin.bert import criterion, model
from deltasam_fairseq.fairseq_plugin.hook import install

install()

__all__ = ["criterion", "model", "optimizer", "sentence_losses"]
