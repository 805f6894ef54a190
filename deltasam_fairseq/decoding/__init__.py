"""``fairseq-generate`` with what summarization needs of it; run as ``python -m``."""
