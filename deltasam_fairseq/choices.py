"""What a user chooses from in more than one room."""

from __future__ import annotations

#: Values of ``--sam-method``, and of ``--method`` where nothing is combined.
METHODS = ("none", "sam", "delta_sam", "per_instance")

#: Values of ``--precision``; all but fp32 are flags of fairseq.
PRECISIONS = ("fp32", "fp16", "bf16")
