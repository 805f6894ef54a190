"""A model on its way to Hugging Face: what a checkpoint says of it, and what a folder will hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deltasam_fairseq.errors import UserError


@dataclass(frozen=True)
class Trained:
    """A checkpoint of fairseq's.

    Args:
        source: Where it is, for messages.
        settings: How the model was built.
        task: Settings of the task.
        criterion: Settings of the criterion.
        state: The weights.
    """

    source: str
    settings: Mapping[str, Any]
    task: Mapping[str, Any]
    criterion: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def task_name(self) -> str:
        """The task that it was trained for."""
        return str(self.task.get("_name") or self.task.get("task"))

    def require_task(self, *known: str) -> None:
        """Check that what the model is for can be said.

        Raises:
            UserError: If it was trained for another task.
        """
        if self.task_name not in known:
            raise UserError(
                f"{self.source} was trained for the task {self.task_name}; of this architecture "
                f"models of {', '.join(known)} can be exported"
            )

    def require(self, values: Mapping[str, object]) -> None:
        """Check settings of the model, where there are any.

        Raises:
            UserError: If one has a value that Hugging Face's model has not.
        """
        for name, value in values.items():
            if self.settings.get(name, value) != value:
                raise UserError(
                    f"{self.source} was trained with {name} {self.settings[name]!r}; Hugging "
                    f"Face's model has {value!r} and nothing else"
                )

    def dropouts(self, names: Mapping[str, str]) -> dict[str, float]:
        """Return rates of dropout for ``config.json``: by its names, whose values are fairseq's."""
        known = self.settings
        return {theirs: float(known[ours]) for theirs, ours in names.items() if ours in known}


@dataclass(frozen=True)
class HubModel:
    """What a folder of Hugging Face's will hold.

    Args:
        config: ``config.json``.
        state: The weights.
        files: The others, by name: text, or the content of a JSON file.
        loads_with: The call that reads the folder.
        facts: For the record.
        notes: What to tell the user.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    files: dict[str, Any]
    loads_with: str
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
