"""The configuration node of ``--optimizer delta_sam``.

fairseq reads the types of the fields, so annotations here are never strings:
this module does without ``from __future__ import annotations``.
"""

import math
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any, List

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core.checks import not_negative, one_of, positive
from deltasam_fairseq.core.estimators import ESTIMATORS
from deltasam_fairseq.fairseq_plugin.inner_optimizer import inner_flags
from deltasam_fairseq.fairseq_plugin.sharpness.radius_rules import RADIUS_RULES

SCOPES = ("update", "micro")
DEALINGS = ("random", "loss")
PROBE_PRECISIONS = ("fp32", "model")
ENGINES = ("auto", "batched", "loop")
NORMS = ("layer_norms", "all", "none")
FREELB_NORMS = ("l2", "linf")


@dataclass
class SharpnessConfig(FairseqDataclass):
    """The flags that are this plugin's own; the inner optimizers' are added below."""

    sam_method: ChoiceEnum(list(METHODS)) = field(  # type: ignore[valid-type]
        default="delta_sam",
        metadata={
            "help": "how the weights are perturbed: not at all, one perturbation for the batch "
            "(SAM), one for the reweighted batch (delta-SAM), one for every sentence"
        },
    )
    sam_rho: float = field(
        default=0.05,
        metadata={"help": "L2 norm of the perturbation over all weights; 0: no perturbation"},
    )
    sam_eta: float = field(
        default=1e-4,
        metadata={
            "help": "floor under the slope of Eq. 5, in nats of a sentence's loss; "
            "only delta_sam uses it"
        },
    )
    sam_scope: ChoiceEnum(list(SCOPES)) = field(  # type: ignore[valid-type]
        default="update",
        metadata={
            "help": "what shares one perturbation: the whole update over all micro-batches and "
            "workers, or each micro-batch of each worker"
        },
    )
    sam_groups: int = field(
        default=1,
        metadata={
            "help": "sam, delta_sam: deal the sentences of an update out to this many groups, with "
            "a perturbation each; 1 is the usual, as many as sentences is per_instance"
        },
    )
    sam_group_by: ChoiceEnum(list(DEALINGS)) = field(  # type: ignore[valid-type]
        default="random",
        metadata={
            "help": "how --sam-groups deals them out: at random, or sentences of like losses "
            "together, which takes one more forward pass"
        },
    )
    sam_ascent_fraction: float = field(
        default=1.0,
        metadata={
            "help": "sam, delta_sam: find the perturbation on this share of the sentences, chosen "
            "at random; at least one of each micro-batch or group"
        },
    )
    sam_inner: str = field(
        default="adam",
        metadata={"help": "the optimizer that uses the gradient; its own flags keep their names"},
    )
    sam_estimator: str = field(
        default="finite_difference",
        metadata={
            "help": "how delta_sam estimates the sentence weights: finite_difference (Eq. 5), "
            "uniform (is SAM), random (to compare with), exact (what Eq. 5 estimates, by two "
            "backward passes of each sentence), gibbs or inverse_norm (of the norms of their "
            "gradients), or yours"
        },
    )
    sam_gibbs_temperature: float = field(
        default=1.0,
        metadata={
            "help": "lambda of --sam-estimator gibbs, whose weights are proportional to "
            "exp(lambda n / mean n), n the norm of a sentence's gradient"
        },
    )
    sam_probe_precision: ChoiceEnum(list(PROBE_PRECISIONS)) = field(  # type: ignore[valid-type]
        default="fp32",
        metadata={
            "help": "precision of the forward passes that delta_sam's weights come from: fp32 on "
            "the fp32 weights where there are any, or the model's own"
        },
    )
    sam_start_update: int = field(
        default=0,
        metadata={"help": "updates without a perturbation at the beginning"},
    )
    sam_tail: float = field(
        default=1.0,
        metadata={
            "help": "perturb in this last share of the updates alone; needs --max-update or "
            "--total-num-update"
        },
    )
    sam_interval: int = field(
        default=1,
        metadata={
            "help": "perturb every k-th update only, with the same rho; the others are plain"
        },
    )
    sam_rule: str = field(
        default="all",
        metadata={"help": "which parameters move how far: all, no_bias_norm, norm_only, or yours"},
    )
    sam_adaptive: bool = field(
        default=False,
        metadata={
            "help": "let each weight move in proportion to its size (adaptive SAM; take a rho "
            "about ten times larger)"
        },
    )
    sam_per_instance_engine: ChoiceEnum(list(ENGINES)) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "how per_instance, and sam with --sam-groups, perturb: all sentences of a "
            "batch at once, exactly, or one sentence or group after the other; auto takes the loop "
            "where the batch cannot be exact, and says so"
        },
    )
    sam_norms: ChoiceEnum(list(NORMS)) = field(  # type: ignore[valid-type]
        default="layer_norms",
        metadata={
            "help": "of which layers the norms of the single sentences' gradients are logged "
            "(sam_inorm, sam_inorm_p90, sam_inorm_max): the norm layers, which costs next to "
            "nothing; all, for one more forward and backward pass; or none. per_instance logs "
            "those of all in any case"
        },
    )
    freelb_steps: int = field(
        default=0,
        metadata={
            "help": "FreeLB: passes of each micro-batch, with adversarial noise on the encoder's "
            "embeddings; 0: none. (The released code's adv_steps is one less)"
        },
    )
    freelb_lr: float = field(
        default=0.1,
        metadata={"help": "how far FreeLB moves a sentence's noise after a pass"},
    )
    freelb_init: float = field(
        default=0.1,
        metadata={
            "help": "FreeLB's first noise is uniform within this, for l2 divided by the root of "
            "the number of the sentence's entries; 0: none"
        },
    )
    freelb_max_norm: float = field(
        default=0.3,
        metadata={"help": "largest norm of a sentence's noise in FreeLB; 0: no bound"},
    )
    freelb_norm: ChoiceEnum(list(FREELB_NORMS)) = field(  # type: ignore[valid-type]
        default="l2",
        metadata={"help": "the norm of a sentence's noise and of its gradient in FreeLB"},
    )
    lr: List[float] = II("optimization.lr")  # noqa: UP006  (OmegaConf 2.0 knows typing.List only)
    tpu: bool = II("common.tpu")


def _with_inner_flags() -> type[SharpnessConfig]:
    fields: list[tuple[str, Any, Any]] = []
    for flag in inner_flags().values():
        text = f"[{', '.join(flag.optimizers)}] {flag.help}"
        fields.append((flag.name, flag.type, field(default=None, metadata={"help": text})))
    made = make_dataclass("DeltaSAMConfig", fields, bases=(SharpnessConfig,))
    made.__module__ = __name__
    return made


DeltaSAMConfig = _with_inner_flags()


@dataclass(frozen=True)
class FreeLBSettings:
    """The checked settings of FreeLB.

    Args:
        steps: Number of passes, at least 1.
        lr: How far a sentence's noise moves after a pass.
        init: Bound of the first noise, before it is divided by the root of its size (l2).
        max_norm: Radius of the ball that the noise stays in; 0 for no bound.
        norm: ``l2`` or ``linf``, of a sentence's whole noise.
    """

    steps: int
    lr: float = 0.1
    init: float = 0.1
    max_norm: float = 0.3
    norm: str = "l2"

    @classmethod
    def from_config(cls, cfg: Any) -> "FreeLBSettings | None":
        """Check the values of a configuration node.

        Args:
            cfg: The ``optimizer`` node.

        Returns:
            The settings; ``None`` with ``--freelb-steps 0``. A value outside its range is a
            ``ValueError``.
        """
        found = cls(
            steps=int(not_negative(cfg.freelb_steps, "--freelb-steps")),
            lr=not_negative(cfg.freelb_lr, "--freelb-lr"),
            init=not_negative(cfg.freelb_init, "--freelb-init"),
            max_norm=not_negative(cfg.freelb_max_norm, "--freelb-max-norm"),
            norm=_choice(cfg.freelb_norm, "--freelb-norm", FREELB_NORMS),
        )
        return found if found.steps else None


@dataclass(frozen=True)
class Sharpness:
    """The checked settings that a run's hook works with.

    Args:
        method: One of the four methods.
        rho: L2 norm of the perturbation.
        eta: Floor under the slope, nats.
        scope: What shares one perturbation.
        estimator: Registered name of the weight estimator.
        probe_precision: Precision of the passes that the weights come from.
        start_update: Updates without a perturbation at the beginning.
        interval: Every which update is perturbed.
        rule: Registered name of the radius rule.
        adaptive: Whether weights move in proportion to their size.
        per_instance_engine: How ``per_instance`` perturbs.
        groups: Among how many perturbations the sentences of an update are dealt out.
        group_by: How they are dealt out.
        ascent_fraction: Share of the sentences on which a perturbation is found.
        tail: Last share of the updates that is perturbed.
        gibbs_temperature: λ of the weights of the estimator ``gibbs``.
        norms: Of which layers the norms of the sentences' gradients are logged.
        freelb: The settings of FreeLB, inside the perturbation or without one; ``None``
            without FreeLB.
    """

    method: str
    rho: float = 0.05
    eta: float = 1e-4
    scope: str = "update"
    estimator: str = "finite_difference"
    probe_precision: str = "fp32"
    start_update: int = 0
    interval: int = 1
    rule: str = "all"
    adaptive: bool = False
    per_instance_engine: str = "auto"
    groups: int = 1
    group_by: str = "random"
    ascent_fraction: float = 1.0
    tail: float = 1.0
    gibbs_temperature: float = 1.0
    norms: str = "layer_norms"
    freelb: FreeLBSettings | None = None

    @classmethod
    def from_config(cls, cfg: Any) -> "Sharpness":
        """Check the values of a configuration node.

        Args:
            cfg: The ``optimizer`` node.

        Returns:
            The settings.

        Raises:
            ValueError: If a value is outside its range, a name is unknown, or two settings
                exclude each other.
        """
        shares_one = cfg.sam_groups != 1 or cfg.sam_ascent_fraction != 1
        if shares_one and str(getattr(cfg.sam_method, "value", cfg.sam_method)) == "per_instance":
            raise ValueError(
                "--sam-groups and --sam-ascent-fraction are for --sam-method sam and delta_sam: "
                "with per_instance every sentence has a perturbation of its own"
            )
        if cfg.sam_tail != 1 and cfg.sam_start_update:
            raise ValueError(
                "--sam-tail and --sam-start-update both say where perturbing begins; give one"
            )
        ESTIMATORS.get(cfg.sam_estimator)
        RADIUS_RULES.get(cfg.sam_rule)
        return cls(
            method=_choice(cfg.sam_method, "--sam-method", METHODS),
            rho=not_negative(cfg.sam_rho, "--sam-rho"),
            eta=positive(cfg.sam_eta, "--sam-eta"),
            scope=_choice(cfg.sam_scope, "--sam-scope", SCOPES),
            estimator=cfg.sam_estimator,
            probe_precision=_choice(
                cfg.sam_probe_precision, "--sam-probe-precision", PROBE_PRECISIONS
            ),
            start_update=int(not_negative(cfg.sam_start_update, "--sam-start-update")),
            interval=int(positive(cfg.sam_interval, "--sam-interval")),
            rule=cfg.sam_rule,
            adaptive=bool(cfg.sam_adaptive),
            per_instance_engine=_choice(
                cfg.sam_per_instance_engine, "--sam-per-instance-engine", ENGINES
            ),
            groups=int(positive(cfg.sam_groups, "--sam-groups")),
            group_by=_choice(cfg.sam_group_by, "--sam-group-by", DEALINGS),
            ascent_fraction=_share(cfg.sam_ascent_fraction, "--sam-ascent-fraction"),
            tail=_share(cfg.sam_tail, "--sam-tail"),
            gibbs_temperature=not_negative(cfg.sam_gibbs_temperature, "--sam-gibbs-temperature"),
            norms=_choice(cfg.sam_norms, "--sam-norms", NORMS),
            freelb=FreeLBSettings.from_config(cfg),
        )

    def until(self, end: int | None) -> "Sharpness":
        """Return the settings of a run that ends after so many updates.

        Args:
            end: Their number; ``None`` if nobody knows.

        Returns:
            The settings, with the update at which ``tail`` begins.

        Raises:
            ValueError: If a part is to be perturbed and the end is not known.
        """
        if self.tail == 1:
            return self
        if not end:
            raise ValueError(
                f"--sam-tail {self.tail:g} perturbs the last share of the updates, and nothing "
                "says how many there are; give --max-update, or a schedule with "
                "--total-num-update"
            )
        # Rounded first: 0.1 of 30 updates are three, and in floating point a little more.
        perturbed = math.ceil(round(self.tail * end, 6)) or 1
        return replace(self, start_update=end - perturbed)

    @property
    def active(self) -> bool:
        """Whether anything is perturbed at all."""
        return self.method != "none" and self.rho > 0

    def perturbation(self, update: int) -> int:
        """Return how many perturbed updates there were before one that is perturbed.

        Args:
            update: Number of updates before it.

        Returns:
            The number, the same on every worker and after a restart.
        """
        return (update - self.start_update) // self.interval

    def perturbs(self, update: int) -> bool:
        """Tell whether an update is perturbed.

        Args:
            update: Number of updates before it.

        Returns:
            False for all of them with ``--sam-method none``.
        """
        since = update - self.start_update
        return self.active and since >= 0 and since % self.interval == 0


def _share(value: float, flag: str) -> float:
    share = positive(value, flag)
    if share > 1:
        raise ValueError(f"{flag} is a share, at most 1; got {value!r}")
    return share


def _choice(value: Any, flag: str, allowed: tuple[str, ...]) -> str:
    return one_of(str(getattr(value, "value", value)), flag, allowed)
