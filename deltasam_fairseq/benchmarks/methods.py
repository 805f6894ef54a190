"""The methods that are measured, and the flags that choose them."""

from __future__ import annotations

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
