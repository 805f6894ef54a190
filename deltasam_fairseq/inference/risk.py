"""Measure the adversarial risk of a checkpoint over a split (Eq. 2, Table 4).

The maximum over each sentence's neighbourhood is taken as the methods take it: one step of
length rho along the sentence's own gradient, without dropout. Differs from the paper: it
does not say over which split its Table 4 is; here it is the one that is asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltasam_fairseq.core.graph import differentiate
from deltasam_fairseq.core.vectors import global_norm
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import own_projections
from deltasam_fairseq.inference.checkpoint import (
    Checkpoint,
    batches,
    checkpoint_parser,
    open_checkpoint,
    write_json,
)
from deltasam_fairseq.per_instance import Engine, Unsupported
from deltasam_fairseq.per_instance.risk import adversarial_losses

#: ``auto`` is ``batched`` where that is exact and ``loop`` elsewhere.
ENGINES = ("auto", "batched", "loop")
#: Begins the lines that are meant for the user; fairseq prints the others.
PREFIX = "adversarial risk: "
SENTENCES = "adversarial_risk_sentences.json"
_SECONDS_BETWEEN_LINES = 10.0


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the record and the single sentences.

    Args:
        argv: Arguments; those of the process when left out.
    """
    parser = checkpoint_parser("risk", __doc__)
    parser.add_argument("--rho", type=float, required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    args = parser.parse_args(argv)
    try:
        record, sentences = measure(
            open_checkpoint(args),
            args.split,
            rho=args.rho,
            engine=args.engine,
            batch_size=args.batch_size,
            log=lambda line: print(PREFIX + line, flush=True),
        )
    except Unsupported as refusal:
        sys.exit(f"--engine {args.engine}: {refusal}; --engine loop can")
    write_json(args.out.with_name(SENTENCES), sentences)
    write_json(args.out, record)


def measure(
    checkpoint: Checkpoint,
    split: str,
    *,
    rho: float,
    engine: str = "auto",
    batch_size: int = 32,
    log: Callable[[str], None] = print,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Measure the adversarial risk of a checkpoint.

    Args:
        checkpoint: The model and its task.
        split: Over which sentences.
        rho: Radius of the neighbourhood.
        engine: One of :data:`ENGINES`.
        batch_size: Sentences that the batched engine takes at once.
        log: Told the progress, and why a batch is scored sentence by sentence.

    Returns:
        ``risk`` and ``loss``, the means of l(w + eps) and l(w) in nats; ``rho``, ``n``,
        ``split``, ``engine``, ``seconds``, and ``refused``, the batched engine's reasons if it
        refused. Then the single sentences: ``ids``, ``losses``, ``risks`` and ``norms`` of
        their gradients, in the order of the data.
    """
    model, task = checkpoint.model, checkpoint.task
    criterion = task.build_criterion(checkpoint.config.criterion).eval()  # no regularizer
    read = reader_for(criterion)
    dataset = checkpoint.load_split(split)

    def losses_of(sample: Any) -> Tensor:
        losses: Tensor = read(criterion, model, sample).losses
        return losses

    def loss_of_one(number: int) -> Tensor:
        return losses_of(checkpoint.collate(dataset, [number]))

    scorer = Scorer(model, rho=rho, engine=engine, log=log)
    found: dict[int, tuple[float, float, float]] = {}
    began = logged = time.monotonic()
    for batch in batches(task, dataset, model.max_positions(), batch_size, longest_first=True):
        sample = checkpoint.collate(dataset, batch)
        ids = sample["id"].tolist()  # some data sets sort while they collate
        scores = scorer.score(partial(losses_of, sample), [partial(loss_of_one, i) for i in ids])
        found |= dict(zip(ids, zip(*scores, strict=True), strict=True))
        if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
            logged = time.monotonic()
            log(f"{len(found)} of {len(dataset)} sentences")
    ids = sorted(found)
    losses, risks, norms = (list(column) for column in zip(*map(found.get, ids), strict=True))
    record = {
        "risk": sum(risks) / len(ids),
        "loss": sum(losses) / len(ids),
        "rho": rho,
        "n": len(ids),
        "split": split,
        "engine": scorer.used,
        "seconds": round(time.monotonic() - began, 2),
    }
    if scorer.reasons:
        record["refused"] = scorer.reasons
    return record, {"ids": ids, "losses": losses, "risks": risks, "norms": norms}


class Scores(NamedTuple):
    """Losses of some sentences.

    Attributes:
        losses: ``l_i(w)``, nats.
        risks: ``l_i(w + eps_i)``, nats.
        norms: ``|grad l_i(w)|``.
    """

    losses: list[float]
    risks: list[float]
    norms: list[float]


class Scorer:
    """Scores batches of one model with an engine.

    With ``auto`` a batch that the batched engine refuses is scored sentence by
    sentence, and each reason is logged once.

    Args:
        model: The model.
        rho: Radius of the neighbourhood.
        engine: One of :data:`ENGINES`.
        log: Told why the loop was taken.

    Attributes:
        scored: How many sentences each engine has scored.
        reasons: Why the batched one refused, each once.
    """

    def __init__(
        self, model: nn.Module, *, rho: float, engine: str, log: Callable[[str], None]
    ) -> None:
        self.scored = {"batched": 0, "loop": 0}
        self.reasons: list[str] = []
        self._model = model
        self._params = [param for param in model.parameters() if param.requires_grad]
        self._rho = rho
        self._engine = None if engine == "loop" else Engine(model)
        self._may_loop = engine != "batched"
        self._log = log

    def score(
        self, together: Callable[[], Tensor], alone: Sequence[Callable[[], Tensor]]
    ) -> Scores:
        """Score the sentences of a batch.

        Args:
            together: One forward pass of all, shape ``(N,)``.
            alone: One forward pass of each, shape ``(1,)``.

        Returns:
            N losses, N adversarial ones, N norms.

        Raises:
            Unsupported: If the batched engine refuses and the loop was not allowed.
        """
        if self._engine is not None:
            try:
                with own_projections(self._model):
                    batched = adversarial_losses(self._engine, together, rho=self._rho)
            except Unsupported as refusal:
                if not self._may_loop:
                    raise
                self._explain(str(refusal))
            else:
                self.scored["batched"] += len(alone)
                return Scores(
                    batched.losses.tolist(), batched.moved.tolist(), batched.norms.tolist()
                )
        self.scored["loop"] += len(alone)
        found = [adversarial_loss(one, self._params, rho=self._rho) for one in alone]
        losses, risks, norms = map(list, zip(*found, strict=True))
        return Scores(losses, risks, norms)

    @property
    def used(self) -> str:
        """Names of the engines that scored something: ``batched``, or ``batched and loop``."""
        return " and ".join(name for name, count in self.scored.items() if count)

    def _explain(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
            self._log(f"the batched engine cannot do this exactly, so by the loop: {reason}")


def adversarial_loss(
    losses_function: Callable[[], Tensor], params: Sequence[Tensor], *, rho: float
) -> tuple[float, float, float]:
    """Score one sentence at ``w`` and at the worst point near it.

    Args:
        losses_function: One forward pass, shape ``(1,)``.
        params: Parameters to move; restored bit for bit.
        rho: L2 norm of the perturbation.

    Returns:
        ``l(w)`` and ``l(w + rho g / |g|)``, nats, and ``|g|``. If the gradient is zero or not
        finite, both losses are the same.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> adversarial_loss(lambda: w.square().sum()[None], [w], rho=0.5)
        (25.0, 30.25, 10.0)
    """
    with torch.enable_grad():
        loss = losses_function().sum()
        gradient = differentiate(loss, params)
    norm = global_norm(gradient)
    if not torch.isfinite(norm) or norm == 0:
        return loss.item(), loss.item(), norm.item()
    scaled = [part * (rho / norm).to(part.dtype) for part in gradient]
    with torch.no_grad(), WeightSpace.of(params).perturbed(scaled):
        moved = losses_function().sum()
    return loss.item(), moved.item(), norm.item()
