"""What a recipe is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: ``True`` is a flag without a value, ``False`` a flag left out.
FlagValue = str | int | float | bool
Flags = Mapping[str, FlagValue]

#: Values of ``--method``, passed on as ``--sam-method``.
METHODS = ("none", "sam", "delta_sam", "per_instance")

#: Values of ``--precision``; all but fp32 are flags of fairseq.
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How one kind of data is trained, decoded and scored; data, not code.

    Flags are those of fairseq, without the leading dashes.

    Args:
        name: Registered name.
        version: Raised with every change of a number below.
        description: One line.
        prepare: The command that makes its data folder, for the listing.
        flags: For fairseq-train, whatever the method.
        methods: Flags that a method adds or changes. A method without an entry
            gets the plugin's defaults.
        generation: For fairseq-generate.
        metric: Name of the score.
        start: Flags of the first start alone, not of one that continues a run.
        starts_from_bart: Whether it fine-tunes a BART that has to be given.
        tokens_per_update: Most source tokens in one update, over all GPUs and
            micro-batches; none leaves ``--update-freq`` alone.
        rouge: How summaries are scored if the user does not say: ``split``,
            ``tokenization`` and ``like`` of ``rouge_scores``.
    """

    name: str
    version: int
    description: str
    prepare: str
    flags: Flags
    methods: Mapping[str, Flags] = field(default_factory=dict)
    generation: Flags = field(default_factory=dict)
    metric: str = "rouge"
    start: Flags = field(default_factory=dict)
    starts_from_bart: bool = False
    tokens_per_update: int | None = None
    rouge: Mapping[str, str] = field(default_factory=dict)
