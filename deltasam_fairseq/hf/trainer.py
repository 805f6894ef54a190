"""The Trainers: an update of a Trainer becomes a sharpness-aware one.

The Trainer fetches the micro-batches of an update together and calls ``training_step`` for each.
All but the last of these calls only wait; the last one runs the whole update and leaves the
gradient at w + eps in ``.grad``. So the weights are never moved outside of one call: clipping,
callbacks, the optimizer and checkpoints see them where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Seq2SeqTrainer, Trainer

from deltasam_fairseq.core.accumulated import Accumulated, Batch, Weighing
from deltasam_fairseq.core.covered import Covered
from deltasam_fairseq.core.estimators import ESTIMATORS
from deltasam_fairseq.core.groups import dealt, numbered
from deltasam_fairseq.core.instances import Instances
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.randomness import RandomState
from deltasam_fairseq.core.weight_space import WeightSpace
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
        self._instances: Instances | None = None
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
        params = [p for p in model.parameters() if p.requires_grad]
        space = WeightSpace(params, adaptive=map(id, params) if self.sharpness.adaptive else ())
        each = self.sharpness.sam_method == "per_instance"
        batches = [self._prepare_inputs(batch) for batch in self._batches]
        update = self._each_sentence if each else partial(self._groups, plain_step=plain_step)
        seen = update(model, space, batches, num_items_in_batch)
        loss = seen.pop("loss")
        numbers = [*seen.values(), seen["sam_loss"] - loss]
        if self._workers > 1:
            numbers = [n / self._workers for n in total(numbers, None, self.args.device)]
        for name, value in zip([*seen, "sharpness", "updates"], [*numbers, 1.0], strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + value
        return torch.tensor(loss, device=self.args.device)

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

    def _divisor(self, model: Any, inputs: Inputs, num_items: Any) -> Any:
        """Return D: the Trainer differentiates the sum of the sentences' losses over D."""
        counted = num_items is not None and (
            self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        )
        factor = self._workers if counted and self.args.average_tokens_across_devices else 1
        plain = self.accelerator.unwrap_model(model)
        self._unit = self._unit or self._find_unit(plain, inputs, num_items, factor)
        counts = {"labels": label_count(plain, inputs), "sentences": sentence_count(inputs)}
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = counted or self.compute_loss_func is not None
        divisor = {**counts, "update": num_items}[self._unit] / factor
        return divisor if scaled else divisor * len(self._batches)

    def _find_unit(self, plain: Any, inputs: Inputs, num_items: Any, factor: int) -> str:
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
        labels, sentences = label_count(plain, inputs), sentence_count(inputs)
        for unit, count in {"labels": labels, "sentences": sentences, "update": twice}.items():
            if count and math.isclose(losses / count, own / factor, rel_tol=1e-3, abs_tol=1e-6):
                return unit
        raise ValueError(
            f"the losses of the sentences add up to {losses:g}, and the Trainer's own loss is "
            f"{own:g}: not their sum divided by the number of labels or sentences. Override "
            "compute_sentence_losses(model, inputs) so that it is, or use sam_method='sam' with "
            "groups=1, which needs no losses of sentences"
        )

    def _groups(
        self,
        model: Any,
        space: WeightSpace,
        batches: Sequence[Inputs],
        num_items: Any,
        plain_step: Callable[..., Tensor],
    ) -> dict[str, float]:
        settings, groups = self.sharpness, self.sharpness.groups
        base = self.args.seed if settings.sam_seed is None else settings.sam_seed
        seed = seed_for(base, self.state.global_step)
        weighs = settings.sam_method == "delta_sam"

        def whole(inputs: Inputs) -> Batch:
            divisor = self._divisor(model, inputs, num_items) if weighs else 1.0
            step = partial(plain_step, model, inputs, num_items)
            return Batch(step, partial(self._losses, model, inputs), divisor)

        def part(inputs: Inputs, rows: Sequence[int]) -> Batch:
            divisor = self._divisor(model, inputs, num_items)
            score = partial(self._losses, model, rows_of(inputs, rows))

            def step() -> Tensor:
                loss = score().sum() / divisor
                self.accelerator.backward(loss)
                return loss.detach()

            return Batch(step, score, divisor)

        parts = [[whole(inputs) for inputs in batches]]
        if groups > 1:
            numbers = numbered([sentence_count(inputs) for inputs in batches])
            parts = [
                [part(*pair) for pair in zip(batches, group, strict=True) if pair[1]]
                for group in dealt(numbers, groups, seed)
            ]
        # In trainer_state.json, so that a resumed run draws the directions it would have drawn.
        own: dict[str, Any] = {"args": {}, "attributes": {"covered": []}}
        memory = self.state.stateful_callbacks.setdefault("SharpnessAware", own)["attributes"]
        covered = Covered(list(model.parameters()), memory["covered"])
        estimator = ESTIMATORS.get(settings.estimator)
        weighing = Weighing(estimator, covered, settings.eta, seed) if weighs else None
        no_sync = partial(self.accelerator.no_sync, model)
        sharing = self._workers if groups == 1 else 1
        steps = Accumulated(model, space, settings.rho, sharing, no_sync)
        found = [steps.step(p, weighing, last=p is parts[-1]) for p in parts]
        memory["covered"] = sorted(covered.positions)
        means = [sum(column) / len(found) for column in zip(*found, strict=True)]
        names = ("loss", "sam_loss", "sam_gnorm", "sam_ess", "sam_floored", "sam_fallback")
        seen = dict(zip(names, means, strict=True))
        seen |= {name: seen[name] * len(found) for name in ("loss", "sam_loss")}
        return {n: v for n, v in seen.items() if weighs or n not in {"sam_ess", "sam_floored"}}

    def _each_sentence(
        self, model: Any, space: WeightSpace, batches: Sequence[Inputs], num_items: Any
    ) -> dict[str, float]:
        if self._instances is None:
            plain, engine = self.accelerator.unwrap_model(model), self.sharpness.per_instance_engine
            self._instances = Instances(plain, engine)
        seen = {"loss": 0.0, "sam_loss": 0.0, "sam_gnorm": 0.0, "sam_fallback": 0.0}
        workers, everyone = self._workers, sum(map(sentence_count, batches))
        for number, inputs in enumerate(batches, start=1):
            # core's steps are those of one process with the sentences of all workers.
            divisor = self._divisor(model, inputs, num_items) * workers

            def score(index: int | None = None, inputs: Any = inputs, by: Any = divisor) -> Tensor:
                if index is None:
                    return self._losses(model, inputs) / by
                return self._losses(model, rows_of(inputs, [index])).sum() / by

            with nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                report = self._instances.step(
                    space, [score], rho=self.sharpness.rho, reduction="sum", loss_scale=None
                )
            seen["loss"] += report.losses.sum().item() * workers
            seen["sam_loss"] += report.perturbed_losses.sum().item() * workers
            seen["sam_gnorm"] += report.gradient_norm * len(report.losses) * workers
            seen["sam_fallback"] += report.fallbacks / everyone
        return seen


class SharpnessAwareTrainer(SharpnessAware, Trainer):
    """``transformers.Trainer`` with one more argument, ``sharpness``."""


class SharpnessAwareSeq2SeqTrainer(SharpnessAware, Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with one more argument, ``sharpness``."""
