"""Sharpness-aware training of language models, inside fairseq or without it.

Importing this package imports neither torch nor fairseq; see
:mod:`deltasam_fairseq.core` for plain PyTorch and
:mod:`deltasam_fairseq.fairseq_plugin` for ``fairseq-train``.
"""

__version__ = "0.1.0"
