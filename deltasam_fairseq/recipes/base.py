"""What a recipe is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.kinds.base import DataKind
from deltasam_fairseq.recipes.kinds.text_pairs import TextPairs
from deltasam_fairseq.recipes.methods import PARTS, Flags, Method, Part, find_method
from deltasam_fairseq.registry import nearest


@dataclass(frozen=True)
class Model:
    """A pretrained model that a recipe fits, and what changes with it.

    Args:
        description: One line.
        flags: Beside those of the recipe; they replace the recipe's.
        methods: Beside those of the recipe, by method.
        max_tokens: Longest input, in tokens with the special ones; longer ones are cut.
        published: What papers print for it, by the name of the row, as printed.
        on_cpu: What to know and to do without a GPU; empty if it is small enough for a CPU.
    """

    description: str
    flags: Flags
    methods: Mapping[str, Flags] = field(default_factory=dict)
    max_tokens: int = 512
    published: Mapping[str, str] = field(default_factory=dict)
    on_cpu: str = ""


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
            gets the plugin's defaults. A sum has the flags of its parts; an entry of
            its own settles what these disagree on.
        parts: Parts of methods that are this recipe's own, by name, such as noise that
            its criterion adds; one with the name of a usual part takes its place.
        generation: For fairseq-generate.
        metric: Name of the score.
        start: Flags of the first start alone, not of one that continues a run.
        tokens_per_update: Most source tokens in one update, over all GPUs and
            micro-batches; none leaves ``--update-freq`` alone.
        kind: The kind of its data, and what follows from that.
        models: The pretrained models that it fits, by name.
        grid: Values to search, by the name of the flag; the paper's.
        notes: What a user should know, one line each.
        rouge: How summaries are scored if the user does not say: ``split``,
            ``tokenization`` and ``like`` of ``rouge_scores``.
        on_cpu: What to know and to do without a GPU; empty if it is small enough for a CPU.

    Raises:
        UserError: If ``methods``, its own or that of a model, has an unknown name.
    """

    name: str
    version: int
    description: str
    prepare: str
    flags: Flags
    methods: Mapping[str, Flags] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    generation: Flags = field(default_factory=dict)
    metric: str = "rouge"
    start: Flags = field(default_factory=dict)
    tokens_per_update: int | None = None
    rouge: Mapping[str, str] = field(default_factory=dict)
    kind: DataKind[Any] = field(default_factory=TextPairs)
    models: Mapping[str, Model] = field(default_factory=dict)
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    on_cpu: str = ""

    def __post_init__(self) -> None:
        self._require_methods(f"the recipe {self.name}", self.methods)
        for model in self.models.values():
            self._require_methods(f"the model {model.description!r}", model.methods)

    @property
    def all_parts(self) -> dict[str, Part]:
        """What its methods are made of: the usual parts, and its own in their places or behind."""
        return {**PARTS, **self.parts}

    def method(self, name: str) -> Method:
        """Return what a value of ``--method`` stands for."""
        return find_method(name, self.all_parts)

    def model(self, name: str) -> Model:
        """Look one of its models up by its name."""
        if name not in self.models:
            raise UserError(
                f"the recipe {self.name} has no model {name!r}{nearest(name, self.models)}"
            )
        return self.models[name]

    def with_model(self, name: str) -> Recipe:
        """Return the recipe with a model's flags, and what it says of CPUs, in their places."""
        model = self.model(name)
        methods = {
            method: {**self.methods.get(method, {}), **model.methods.get(method, {})}
            for method in {**self.methods, **model.methods}
        }
        flags = {**self.flags, **model.flags}
        return replace(self, flags=flags, methods=methods, on_cpu=model.on_cpu)

    def _require_methods(self, owner: str, names: Iterable[str]) -> None:
        for name in names:
            try:
                found = self.method(name)
            except UserError as error:
                raise UserError(f"{owner} has flags for a wrong method: {error}") from None
            for part in found.parts.values():
                if part.like:
                    raise UserError(
                        f"{owner} has flags for the method {name!r}, but {name!r} runs with the "
                        f"flags of {part.like!r}; put them there"
                    )
            if name != found.name:
                raise UserError(f"{owner} has flags for {name!r}; write it as {found.name!r}")
