"""The Trainers: an update of a Trainer becomes a sharpness-aware one.

The Trainer fetches the micro-batches of an update together and calls ``training_step`` for each.
All but the last of these calls only wait; the last one runs the whole update and leaves the
gradient at w + eps in ``.grad``. So the weights are never moved outside of one call: clipping,
callbacks, the optimizer and checkpoints see them where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Seq2SeqTrainer, Trainer

from deltasam_fairseq.core.optimizer import DeltaSAM
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.steps import StepReport
from deltasam_fairseq.core.workers import total
from deltasam_fairseq.hf.arguments import SharpnessArguments
from deltasam_fairseq.hf.losses import (
    Inputs,
    label_count,
    rows_of,
    sentence_count,
    sentence_losses,
)


class SharpnessAware:
    """A mixin that stands before a Trainer among the bases (``docs/hugging_face.md``)."""

    def __init__(
        self, *args: Any, sharpness: SharpnessArguments | None = None, **kwargs: Any
    ) -> None:
        self.sharpness = SharpnessArguments() if sharpness is None else sharpness
        if not isinstance(self.sharpness, SharpnessArguments):
            raise TypeError(f"sharpness must be SharpnessArguments, got {sharpness!r}")
        super().__init__(*args, **kwargs)
        self._forget()

    def _forget(self) -> None:
        self._batches: list[Any] = []
        self._arrived, self._unit = 0, ""
        self._sharp: DeltaSAM | None = None
        self._sums: dict[str, float] = {}

    def compute_sentence_losses(self, model: Any, inputs: Inputs) -> Tensor:
        """Score every sentence of a batch; override it for a loss of your own.

        Returns:
            Shape ``(N,)``. ``compute_loss`` has to return their sum divided by the number of
            labels, of sentences, or of labels in the whole update (``num_items_in_batch``).
        """
        smoothing = self.label_smoother.epsilon if self.label_smoother else 0.0
        return sentence_losses(model, self.accelerator.unwrap_model(model), inputs, smoothing)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        self._forget()
        if self.sharpness.perturbs(0, 0) and self.model is not None:
            self.sharpness.refuse(self, self.model)
        return super().train(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of an update, and remember them."""
        found = super().get_batch_samples(*args, **kwargs)
        self._batches, self._arrived = found[0], 0
        return found

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Leave the gradient at the perturbed weights, with the last micro-batch of an update.

        Returns:
            The loss at w: with the last micro-batch that of the whole update, before it zero.

        Raises:
            RuntimeError: If the batch is not of the update that was fetched.
        """
        plain_step = super().training_step
        if not self.sharpness.perturbs(self.state.global_step, self.state.max_steps):
            return plain_step(model, inputs, num_items_in_batch)
        if self._arrived >= len(self._batches) or inputs is not self._batches[self._arrived]:
            raise RuntimeError(
                "training_step was given another batch than get_batch_samples returned, so that "
                "it is not known what belongs to one update; change batches in the collator"
            )
        self._arrived += 1
        if self._arrived < len(self._batches):
            return torch.zeros((), device=self.args.device)
        self.sharpness.refuse(self, model)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # a schedule-free one moves the weights here
        batches = [self._prepare_inputs(batch) for batch in self._batches]
        if self.sharpness.sam_method == "sam" and self.sharpness.groups == 1:
            score = partial(self._own_loss, plain_step, num_items_in_batch, model)
            closures, divisors = [partial(score, batch) for batch in batches], [1.0] * len(batches)
        else:
            closures, divisors = [], []
            for batch in batches:
                divisor = self._divisor(model, batch, num_items_in_batch)
                closures.append(partial(self._sentences, divisor, model, batch))
                divisors += [divisor] * sentence_count(batch)
        return self._note(self._step(model, closures), torch.tensor(divisors).double())

    def _step(self, model: Any, closures: Sequence[Callable[..., Tensor]]) -> StepReport:
        """Leave the gradient in ``.grad``, with random directions of the state's own."""
        if self._sharp is None:
            plain = self.accelerator.unwrap_model(model)
            self._sharp = self.sharpness.around(plain, self.args.seed)
        # In trainer_state.json, so that a resumed run draws the directions it would have drawn.
        own: dict[str, Any] = {"args": {}, "attributes": {"covered": []}}
        memory = self.state.stateful_callbacks.setdefault("SharpnessAware", own)["attributes"]
        self._sharp.steps, self._sharp.covered = self.state.global_step, set(memory["covered"])
        report = self._sharp.step(closures)
        memory["covered"] = sorted(self._sharp.covered)
        return report

    def _note(self, report: StepReport, divisors: Tensor) -> Tensor:
        """Keep what an update saw for the log; return its loss at w."""
        everyone, workers = len(divisors), self._workers
        each = everyone if self.sharpness.sam_method == "per_instance" else self.sharpness.groups
        loss, moved = (
            self._logged(losses.cpu().double() / divisors)
            for losses in (report.losses, report.perturbed_losses)
        )
        seen = {"loss": loss, "sam_loss": moved, "sharpness": moved - loss}
        seen["sam_gnorm"] = report.gradient_norm * everyone * workers
        seen["sam_fallback"] = report.fallbacks / min(each, everyone)
        if self.sharpness.sam_method == "delta_sam":
            seen["sam_ess"] = report.effective_sentences.item()
            seen["sam_floored"] = report.floored / everyone
        numbers = list(seen.values())
        if workers > 1:
            numbers = [n / workers for n in total(numbers, None, self.args.device)]
        for name, value in zip([*seen, "updates"], [*numbers, 1.0], strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + value
        return torch.tensor(loss, device=self.args.device)

    def _logged(self, losses: Tensor) -> float:
        """Add losses up; of some models that of a batch without labels is 0 / 0."""
        known = losses[losses.isfinite()]
        return (known if len(known) and self.args.logging_nan_inf_filter else losses).sum().item()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what the Trainer logs, and beside its loss the means over perturbed updates."""
        if "loss" in logs and self._sums:
            count = self._sums.pop("updates")
            logs = {**logs, **{name: value / count for name, value in self._sums.items()}}
            self._sums = {}
        super().log(logs, *args, **kwargs)

    @property
    def _workers(self) -> int:
        return int(self.accelerator.num_processes)

    def _losses(self, model: Any, inputs: Inputs) -> Tensor:
        with self.compute_loss_context_manager():
            return self.compute_sentence_losses(model, inputs)

    def _divisor(self, model: Any, inputs: Inputs, num_items: Any) -> float:
        """Return D: the Trainer differentiates the sum of the sentences' losses over D."""
        counted = num_items is not None and (
            self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        )
        factor = self._workers if counted and self.args.average_tokens_across_devices else 1
        plain = self.accelerator.unwrap_model(model)
        counts = {"labels": label_count(plain, inputs), "sentences": sentence_count(inputs)}
        self._unit = self._unit or self._find_unit(plain, inputs, counts, num_items, factor)
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = counted or self.compute_loss_func is not None
        # Where all labels are ignored the losses are zero, and may be divided by anything else.
        divisor = float({**counts, "update": num_items}.get(self._unit) or 1) / factor
        return divisor if scaled else divisor * len(self._batches)

    def _find_unit(
        self, plain: Any, inputs: Inputs, counts: dict[str, int], num_items: Any, factor: int
    ) -> str:
        """Compare the sentences' losses with the Trainer's own loss, without dropout."""
        state = RandomState.capture(plain.parameters())
        plain.eval()
        # Twice the number, because one micro-batch alone has all labels of its update.
        twice = None if num_items is None else 2 * num_items
        with torch.no_grad():
            losses = self._losses(plain, inputs).sum().item()
            with self.compute_loss_context_manager():
                own = self.compute_loss(plain, dict(inputs), num_items_in_batch=twice).item()
        plain.train()
        state.replay()
        torch.clear_autocast_cache()  # its casts were made without a graph
        if losses == 0 and not own > 0:  # 0 or 0 / 0: all labels are ignored
            return ""
        for unit, count in {**counts, "update": twice}.items():
            if count and math.isclose(losses / count, own / factor, rel_tol=1e-3, abs_tol=1e-6):
                return unit
        raise ValueError(
            f"the losses of the sentences add up to {losses:g}, and the Trainer's own loss is "
            f"{own:g}: not their sum divided by the number of labels or sentences. Override "
            "compute_sentence_losses(model, inputs) so that it is, or use sam_method='sam' with "
            "groups=1, which needs no losses of sentences"
        )

    def _own_loss(
        self, step: Callable[..., Any], num_items: Any, model: Any, inputs: Any
    ) -> Tensor:
        """Run the Trainer's own step up to its backward pass; shape ``(1,)``."""
        found: list[Tensor] = []
        self.accelerator.backward = lambda loss, **_: found.append(loss)
        try:
            step(model, inputs, num_items)
        finally:
            del self.accelerator.backward
        if len(found) != 1:
            raise RuntimeError(
                f"the Trainer's training_step called accelerator.backward {len(found)} times; sam "
                "needs one loss per micro-batch"
            )
        return _divided(found[0].reshape(1), self._workers)

    def _sentences(
        self,
        divisor: float,
        model: Any,
        inputs: Inputs,
        index: int | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Score all sentences of a batch, or one, or some."""
        some = rows if index is None else [index]
        losses = self._losses(model, inputs if some is None else rows_of(inputs, some))
        return _divided(losses, divisor * self._workers)


def _divided(losses: Tensor, divisor: float) -> Tensor:
    """Divide the gradient of losses; their values, which Eq. 5 weighs by, stay in nats."""
    values = losses.detach()
    return values + (losses - values) / divisor


class SharpnessAwareTrainer(SharpnessAware, Trainer):
    """``transformers.Trainer`` with one more argument, ``sharpness``."""


class SharpnessAwareSeq2SeqTrainer(SharpnessAware, Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with one more argument, ``sharpness``."""
