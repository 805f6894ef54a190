"""What is trained to find out what the methods are worth, and in which order. Data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Condition:
    """Data on which methods are compared.

    Args:
        recipe: Its recipe, a task of GLUE.
        sentences: Number of training sentences that are drawn, anew for each seed.
        flipped: Share of them that gets the other label.
        epochs: Of every run.
        words: Least and largest number of words of a training sentence.
        further: By system, larger radii that it has here alone: its best was the largest.
    """

    recipe: str
    sentences: int
    flipped: float = 0.0
    epochs: int = 5
    words: tuple[int, int] = (4, 16)
    further: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def system(self, name: str) -> System:
        """Return a system of the plan with all radii that it has here."""
        system = SYSTEMS[name]
        return replace(system, radii=(*system.radii, *self.further.get(name, ())))

    def flags(self) -> list[str]:
        """Return what replaces the recipe's flags: Liu et al. (2019), with 6 % of warm-up."""
        updates = self.epochs * -(-self.sentences // BATCH)
        return [
            *f"--batch-size {BATCH} --lr 1e-4 --max-epoch {self.epochs}".split(),
            *f"--max-update {updates} --total-num-update {updates}".split(),
            *f"--warmup-updates {round(0.06 * updates)} --log-interval 1000".split(),
            # A run is scored after its last epoch: a best one would be chosen by what scores it.
            *"--best-checkpoint-metric num_updates".split(),
        ]


@dataclass(frozen=True)
class System:
    """A method at some radii.

    Args:
        method: As ``deltasam sweep --methods`` has it.
        radii: Values of ``--sam-rho``, one of which is chosen.
        grid: Further flags, in the form of ``--grid``.
    """

    method: str
    radii: Sequence[str] = ()
    grid: Sequence[str] = ()

    def arguments(self) -> list[str]:
        """Return what names its runs to ``deltasam sweep``."""
        grid = [*([f"rho={','.join(self.radii)}"] if self.radii else []), *self.grid]
        return ["--methods", self.method, *(["--grid", *grid] if grid else [])]


BATCH = 16
#: Of the adversarial risk. At the paper's 0.05, every sentence's own perturbation takes a MiniLM
#: that was trained at less to chance.
RISK_RADIUS = 0.01
_WIDE = ("0.02", "0.03", "0.05")
#: Every sentence has the whole of the radius.
_NARROW = ("0.005", "0.01", "0.02")
#: On the first draw 0.02 was worth less, and at 0.08 nothing was learned.
_WEIGHTED = ("0.03", "0.05")

CONDITIONS = {
    "sst-2-40": Condition("glue/sst-2", 1000, flipped=0.4),
    "sst-2-20": Condition("glue/sst-2", 1000, flipped=0.2),
    "sst-2-0": Condition("glue/sst-2", 1000),
    "sst-2-few": Condition(
        "glue/sst-2", 200, epochs=10, further={"sam": ("0.08",), "per_instance": ("0.03",)}
    ),
    "qqp-40": Condition("glue/qqp", 1000, flipped=0.4, words=(4, 20)),
    "sts-b": Condition("glue/sts-b", 1000),
}
SYSTEMS = {
    "none": System("none"),
    "sam": System("sam", _WIDE),
    "per_instance": System("per_instance", _NARROW),
    "tail": System("per_instance", ("0.01", "0.02", "0.05"), grid=("sam-tail=0.25",)),
    "delta_sam": System("delta_sam", _WEIGHTED),
    "random": System("random", _WEIGHTED),
    "groups": System("sam", _NARROW, grid=("sam-groups=4",)),
    # The rivals as published: nothing of them is searched.
    **{name: System(name) for name in ("rdrop", "r3f", "freelb", "smart")},
}
#: Whose scores on the same draws answer the questions: is anything gained, does Eq. 2 itself gain
#: more, is the tail enough, do groups lie between, do Eq. 5's weights do more than equal ones or
#: random ones.
PAIRS = (
    ("sam", "none"),
    ("per_instance", "none"),
    ("per_instance", "sam"),
    ("tail", "per_instance"),
    ("groups", "sam"),
    ("delta_sam", "sam"),
    ("delta_sam", "random"),
)
