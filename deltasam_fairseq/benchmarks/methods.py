"""What is measured: methods, rivals, and sums of both; and the flags that choose them."""

from __future__ import annotations

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.registry import nearest

# By name, in the order in which they take turns: what stands behind ``--sam-method``.
METHOD_FLAGS = {
    "none": "none",
    "sam": "sam",
    "delta_sam": "delta_sam",
    "per_instance": "per_instance --sam-per-instance-engine batched",
    "per_instance_loop": "per_instance --sam-per-instance-engine loop",
}
METHODS = tuple(METHOD_FLAGS)

# One sentence at a time: fewer rounds have to do.
SLOW_METHODS = ("per_instance_loop",)

#: The paper's rivals by name. FreeLB's passes are those of its RTE and MRPC.
RIVAL_FLAGS = {
    "rdrop": "--regularizer rdrop",
    "r3f": "--regularizer r3f",
    "smart": "--regularizer smart",
    "freelb": "--freelb-steps 3",
}
#: What ``--regularizers`` measures: each rival alone and with each method.
SUMS = tuple(
    rival if method == "none" else f"{method}+{rival}"
    for rival in RIVAL_FLAGS
    for method in ("none", "sam", "delta_sam", "per_instance")
)


def flags_of_method(name: str, *, paired: bool) -> str:
    """Return what stands behind ``--sam-method`` for a method, a rival, or ``sam+rdrop``.

    Args:
        name: The name.
        paired: Whether the workload has pairs of texts: the regularizers are those of this
            plugin's criterions.

    Returns:
        The flags.

    Raises:
        UserError: If a part is unknown, or there are two of a kind.

    Example:
        >>> flags_of_method("sam+freelb", paired=True)
        'sam --freelb-steps 3'
    """
    parts = name.split("+")
    methods = [part for part in parts if part in METHOD_FLAGS]
    rivals = [part for part in parts if part in RIVAL_FLAGS]
    if len(methods) + len(rivals) != len(parts) or len(methods) > 1 or len(rivals) > 1:
        unknown = next((part for part in parts if part not in {*METHOD_FLAGS, *RIVAL_FLAGS}), name)
        raise UserError(
            f"--methods: unknown name {unknown!r}{nearest(unknown, (*METHODS, *RIVAL_FLAGS))}; one "
            "of each may be joined, as in sam+rdrop"
        )
    flags = METHOD_FLAGS[methods[0] if methods else "none"]
    if rivals and "regularizer" in RIVAL_FLAGS[rivals[0]]:
        own = "label_smoothed_cross_entropy" if paired else "sentence_prediction"
        flags = f"{flags} --criterion deltasam_{own}"
    if rivals and "batched" in flags and rivals[0] in {"smart", "freelb"}:
        flags = flags.replace("batched", "auto")  # which takes the loop, as the batch needs it
    return " ".join([flags, *(RIVAL_FLAGS[rival] for rival in rivals)])
