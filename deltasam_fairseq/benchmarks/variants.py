"""What is compared: variants of training, the passes that they are made of, and two clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

#: Passes over a batch: forward without a graph, forward with one, backward, and backward
#: down to the outputs of the embeddings, which computes no gradient of a weight.
PASSES = ("forward_no_grad", "forward", "backward", "backward_no_weights")


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        flags: What follows ``--sam-method`` on fairseq's command line.
        passes: How many passes of each name an update runs; none if this depends on the batch.
        slow: Whether it takes part in the first round and in few of the others.
    """

    flags: str
    passes: Mapping[str, float] | None
    slow: bool = False


#: By name, in the order in which they take turns. The batched engine of ``per_instance`` also
#: computes norms and products with the perturbations, which no pass of an ordinary update has.
VARIANTS = {
    "none": Variant("none", {"forward": 1, "backward": 1}),
    "sam": Variant("sam", {"forward": 2, "backward": 2}),
    "delta_sam": Variant("delta_sam", {"forward_no_grad": 2, "forward": 2, "backward": 2}),
    "per_instance": Variant(
        "per_instance --sam-per-instance-engine batched",
        {"forward": 2, "backward": 1, "backward_no_weights": 1},
    ),
    "per_instance_loop": Variant(
        "per_instance --sam-per-instance-engine loop", passes=None, slow=True
    ),
}

#: Flags of the paper's rivals by name; CRITERION stands for the project's criterion. FreeLB's
#: number of passes is that of its RTE, MRPC and CoLA.
REGULARIZERS = {
    "rdrop": "--criterion CRITERION --regularizer rdrop",
    "r3f": "--criterion CRITERION --regularizer r3f",
    "smart": "--criterion CRITERION --regularizer smart",
    "freelb": "--freelb-steps 3",
}


def _regularized(method: str, regularizer: str) -> Variant:
    flags = VARIANTS[method].flags
    if regularizer in {"smart", "freelb"}:
        # The batched engine refuses these; the engine "auto" takes the loop there.
        flags = flags.replace("batched", "auto")
    return Variant(f"{flags} {REGULARIZERS[regularizer]}", passes=None)


#: Each rival alone and with each method.
REGULARIZED = {
    regularizer if method == "none" else f"{method}+{regularizer}": _regularized(
        method, regularizer
    )
    for regularizer in REGULARIZERS
    for method in ("none", "sam", "delta_sam", "per_instance")
}
#: Points between SAM and per-instance perturbation, and weights from norms (docs/axis.md).
AXIS = {
    **{
        f"groups{count}": Variant(f"sam --sam-groups {count}", {"forward": 2, "backward": 2})
        for count in (2, 4, 8, 16)
    },
    "fraction": Variant("sam --sam-ascent-fraction 0.25", {"forward": 1.25, "backward": 1.25}),
    "half": Variant("sam --sam-ascent-fraction 0.5", {"forward": 1.5, "backward": 1.5}),
    **{
        name: Variant(
            f"delta_sam --sam-estimator {name}",
            {"forward": 2, "backward": 1, "backward_no_weights": 1},
        )
        for name in ("gibbs", "inverse_norm")
    },
    "random": Variant("delta_sam --sam-estimator random", {"forward": 2, "backward": 2}),
    "norm_only": Variant("sam --sam-rule norm_only", {"forward": 2, "backward": 2}),
    "no_norms": Variant("none --sam-norms none", {"forward": 1, "backward": 1}),
}
ALL_VARIANTS = {**VARIANTS, **REGULARIZED, **AXIS}


def flags_of_variant(name: str, *, paired: bool) -> str:
    """Return what follows ``--sam-method``, with the criterion of pairs or of classes.

    Example:
        >>> flags_of_variant("sam+rdrop", paired=False)
        'sam --criterion deltasam_sentence_prediction --regularizer rdrop'
    """
    own = "label_smoothed_cross_entropy" if paired else "sentence_prediction"
    return ALL_VARIANTS[name].flags.replace("CRITERION", f"deltasam_{own}")


class Times(NamedTuple):
    """How long something took, in seconds, by two clocks.

    Attributes:
        elapsed: On the wall; of a GPU, between two events on its stream.
        processor: Seconds that processors worked for this process, its threads added up.
            Other work on the machine hardly changes it.
    """

    elapsed: float
    processor: float


CLOCKS = Times._fields


def predicted_seconds(variant: str, seconds: Mapping[str, float]) -> float | None:
    """Return the seconds of an update's passes; none for a variant whose passes are not counted.

    Args:
        variant: Its name.
        seconds: What each of :data:`PASSES` takes.

    Example:
        A forward pass is a third of forward + backward, and so are the gradients of the weights:

        >>> third = dict(zip(PASSES, (1.0, 1.0, 2.0, 1.0)))
        >>> [predicted_seconds(name, third) for name in VARIANTS]
        [3.0, 6.0, 8.0, 5.0, None]
    """
    passes = ALL_VARIANTS[variant].passes
    if passes is None:
        return None
    return sum(number * seconds[name] for name, number in passes.items())


def forward_share(seconds: Mapping[str, float]) -> float:
    """Return a forward pass without a graph over forward + backward.

    Each probe of Eq. 5 adds this share to an ordinary update.
    """
    return seconds["forward_no_grad"] / (seconds["forward"] + seconds["backward"])
