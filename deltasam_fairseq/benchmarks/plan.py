"""What a benchmark runs: its options, checked before anything is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from deltasam_fairseq.benchmarks.variants import ALL_VARIANTS, CLOCKS, VARIANTS
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.choices import PRECISIONS
from deltasam_fairseq.errors import UserError, at_least
from deltasam_fairseq.recipes.environment_record import cores
from deltasam_fairseq.registry import nearest
from deltasam_fairseq.settings import setting

MODELS = tuple(WORKLOADS)
METHODS = tuple(VARIANTS)
#: What ``--model both`` means: they take minutes together, on any machine.
BOTH = ("translation", "classification")
SIZES = ("default", "tiny", "narrow")
DEVICES = ("cpu", "cuda")

#: The variants whose passes are counted.
COUNTED = tuple(name for name, variant in VARIANTS.items() if variant.passes)
COUNTED_MODELS = ("translation", "bert_base", "roberta_large", "bart_large")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _models_of(text: str) -> tuple[str, ...]:
    return BOTH if text == "both" else _names(text)


def _models(text: str, default: tuple[str, ...]) -> Any:
    return setting(text, default, flags=("--model",), type=_models_of, metavar="A,B,…")


def _methods(text: str, default: tuple[str, ...]) -> Any:
    return setting(f"{text} ({','.join(default)})", default, type=_names, metavar="A,B,…")


def _number(text: str, default: int) -> Any:
    return setting(text, default, type=int, metavar="N")


@dataclass(frozen=True)
class Plan:
    """One run of the step benchmark.

    Raises:
        UserError: If a name is unknown or a number is outside its range; the message names
            the flag.
    """

    models: tuple[str, ...] = _models(
        "translation, classification (both: these two), minilm, bert_base; for a GPU "
        "roberta_large, bart_large (both)",
        BOTH,
    )
    methods: tuple[str, ...] = _methods(
        "which, in the order of their turns; per_instance is the batched engine; also rdrop, "
        "sam+rdrop and the like",
        METHODS,
    )
    repeats: int = _number("rounds (%(default)s)", 15)
    slow_every: int = _number(
        "per_instance_loop takes part in the first round and every so many after (%(default)s)", 5
    )
    warm_up: int = _number("updates before (%(default)s)", 2)
    threads: int = _number("0: all cores (0)", 0)
    size: str = setting("default; tiny, narrow: see docs/launches.md", "default")
    sentences: int = _number("in a batch (0: the model's own)", 0)
    tokens: int = _number("in each sentence and target (0: the model's own lengths)", 0)
    update_freq: int = _number("micro-batches of an update, each of this shape (%(default)s)", 1)
    seconds: int = _number(
        "of a model: no round begins after as many, but for the first (0: no limit)", 0
    )
    profile: bool = setting("also how long the device waits for Python", False)
    seed: int = _number("(%(default)s)", 1)
    device: str = setting("cpu or cuda (cuda if there is a GPU)", "")
    precision: str = setting("fp32, fp16, or on a GPU bf16 (%(default)s)", "fp32")
    clock: str = setting(
        "elapsed time, or processor time for one thread on a busy machine (%(default)s)", "elapsed"
    )

    def __post_init__(self) -> None:
        """Check the values, and find out what the machine has."""
        # torch takes a second, and the command line's help needs none of it.
        from torch import cuda  # noqa: PLC0415

        if not self.device:
            on_gpu = cuda.is_available() and self.clock != "processor"
            object.__setattr__(self, "device", "cuda" if on_gpu else "cpu")
        _all_known("--model", self.models, MODELS)
        _all_known("--methods", self.methods, tuple(ALL_VARIANTS))
        _all_known("--size", (self.size,), SIZES)
        _all_known("--device", (self.device,), DEVICES)
        _all_known("--precision", (self.precision,), PRECISIONS)
        _all_known("--clock", (self.clock,), CLOCKS)
        if "none" not in self.methods:
            raise UserError("--methods must include none: the others are compared with it")
        for name in ("repeats", "slow_every", "warm_up", "update_freq"):
            at_least(_flag(name), getattr(self, name), 1)
        for name in ("threads", "seed", "sentences", "tokens", "seconds"):
            at_least(_flag(name), getattr(self, name), 0)
        for model in self.models:
            positions = WORKLOADS[model][self.size].positions
            if self.tokens == 1 or self.tokens > positions:
                raise UserError(
                    f"--tokens {self.tokens}: a sentence of {model} has 2 to {positions} tokens"
                )
        if self.device == "cuda" and self.clock == "processor":
            raise UserError("--clock processor: with --device cuda the GPU does the work")
        if self.device == "cuda" and not cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU that it can use")
        if self.device == "cpu" and self.precision == "bf16":
            raise UserError("--precision bf16: fairseq has it on GPUs alone; fp16 or fp32")
        if not self.threads:
            object.__setattr__(self, "threads", cores())

    def command(self) -> str:
        """Return the command line that runs this plan again."""
        brief = ("sentences", "tokens", "update_freq", "seconds", "profile", "precision")
        return f"deltasam bench step {_flags(self, brief)}"


@dataclass(frozen=True)
class LaunchesPlan:
    """One run of the launches benchmark.

    Raises:
        UserError: If a name is unknown or a number is outside its range; the message names
            the flag.
    """

    models: tuple[str, ...] = _models(f"whose layers ({','.join(COUNTED_MODELS)})", COUNTED_MODELS)
    methods: tuple[str, ...] = _methods("which", COUNTED)
    size: str = setting("of the models: narrow has all layers (%(default)s)", "narrow")
    # The batched engine learns in two updates where the sentences are.
    warm_up: int = _number("updates before the one that is counted (%(default)s)", 2)
    repeats: int = _number("rounds of the times that watching takes; 0: none (%(default)s)", 11)
    seed: int = _number("of data and models (%(default)s)", 1)

    def __post_init__(self) -> None:
        """Check the values."""
        _all_known("--model", self.models, MODELS)
        _all_known("--methods", self.methods, COUNTED)
        _all_known("--size", (self.size,), SIZES)
        if "none" not in self.methods:
            raise UserError("--methods must include none: its passes are what all others need")
        at_least("--warm-up", self.warm_up, 2)
        at_least("--repeats", self.repeats, 0)
        at_least("--seed", self.seed, 0)

    def command(self) -> str:
        """Return the command line that runs this plan again."""
        return f"deltasam bench launches {_flags(self)}"


def settings_of(plan: Plan | LaunchesPlan) -> dict[str, Any]:
    """Return all values by name, defaults included, as JSON has them."""
    return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(plan).items()}


def _flag(name: str) -> str:
    return "--model" if name == "models" else f"--{name.replace('_', '-')}"


def _flags(plan: Plan | LaunchesPlan, brief: tuple[str, ...] = ()) -> str:
    """Write a plan's options; those named in ``brief`` only if they differ from their defaults."""
    words = []
    for one in fields(plan):
        value = getattr(plan, one.name)
        if one.name in brief and value == one.default:
            continue
        words.append(_flag(one.name))
        if isinstance(value, tuple):
            words.append("both" if value == BOTH else ",".join(value))
        elif not isinstance(value, bool):
            words.append(str(value))
    return " ".join(words)


def _all_known(flag: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{flag}: unknown name {name!r}{nearest(name, known)}")
    if not given or len(set(given)) != len(given):
        raise UserError(f"{flag} must name each of its values once, got {','.join(given)!r}")
