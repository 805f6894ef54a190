"""The sentences of a split that a run finds hardest: mislabelled ones are among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from deltasam_fairseq.data.prepared import PreparedCorpus
from deltasam_fairseq.files import read_json
from deltasam_fairseq.recipes.adversarial_risk import measure_risk, on_cpu
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.kinds.base import Example
from deltasam_fairseq.recipes.run_folder import RunFolder

#: What sentences can be ordered by.
ORDERS = ("norm", "risk", "loss")
# The program leaves it beside its record.
_SENTENCES = "adversarial_risk_sentences.json"


@dataclass(frozen=True)
class HardSentence:
    """One example with what the run loses on it.

    Args:
        number: Its line in the split's files, from 1.
        norm: Norm of the gradient of its loss.
        risk: Its loss at its own worst weights within rho (Eq. 2), nats.
        loss: Its loss, nats.
        example: Its text and answer.
    """

    number: int
    norm: float
    risk: float
    loss: float
    example: Example

    def as_json(self) -> dict[str, Any]:
        """Return all of it in one flat object."""
        own = {key: value for key, value in asdict(self).items() if key != "example"}
        return {**own, **asdict(self.example)}


def hard_sentences(
    recipe: Recipe,
    data: PreparedCorpus,
    run: RunFolder,
    split: str,
    *,
    by: str,
    top: int,
    rho: float,
    batch_size: int = 32,
    cpu: bool | None = None,
    say: Callable[[str], None] = print,
) -> list[HardSentence]:
    """Score the sentences of a split with a run's best checkpoint, and return the hardest.

    Args:
        recipe: What was trained.
        data: On what.
        run: The run.
        split: Over which sentences.
        by: One of :data:`ORDERS`.
        top: How many.
        rho: Radius of the neighbourhood.
        batch_size: Sentences that the batched engine takes at once.
        cpu: Whether to leave a GPU alone; none asks the run's own command.
        say: Told the progress.

    Returns:
        The hardest first; of equal ones the first in the data.
    """
    without_gpu = on_cpu(run) if cpu is None else cpu
    examples = recipe.kind.examples_of(recipe, data, run, split, cpu=without_gpu, say=say)
    measure_risk(data, run, split, rho, cpu=without_gpu, batch_size=batch_size, say=say)
    scores = read_json(run.predictions(split) / _SENTENCES)
    columns = zip(*(scores[name] for name in ("ids", "norms", "risks", "losses")), strict=True)
    found = [
        HardSentence(number + 1, norm, risk, loss, examples[number])
        for number, norm, risk, loss in columns
    ]
    return sorted(found, key=lambda sentence: -getattr(sentence, by))[:top]
