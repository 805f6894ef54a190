"""Everything that a decoding process needs to import, and the only module with side effects."""

from deltasam_fairseq.decoding import bos_task, gpt2_lines
from deltasam_fairseq.decoding.ngrams import install

install()

__all__ = ["bos_task", "gpt2_lines"]
