"""Settings of fairseq beside the plugin: each keeps its meaning."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer

from deltasam_fairseq.core import reference
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.core.weight_space import ADAPTIVE_OFFSET
from deltasam_fairseq.fairseq_plugin import hook
from deltasam_fairseq.fairseq_plugin.sharpness.radius_rules import RADIUS_RULES
from deltasam_fairseq.registry import UnknownName
from tests.fairseq_plugin.twins import losses_at
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits

METHODS = ("none", "sam", "delta_sam", "per_instance")
PERTURBED = METHODS[1:]
SGD = ("--sam-inner", "sgd", "--lr", "0.05")
PLAIN = ("--dropout", "0", *SGD)

every_method = pytest.mark.parametrize("method", METHODS)
every_perturbed = pytest.mark.parametrize("method", PERTURBED)


def steps_of(data: Path, *flags: str) -> torch.Tensor:
    """Return the first update's change of all weights, as one vector."""
    trainer = toys.make_trainer(data, *toys.TRANSLATION, *flags)
    before = toys.parameters(trainer)
    toys.updates(trainer, [toys.batches(trainer)[:2]])
    return torch.cat([(v - before[n]).flatten() for n, v in toys.parameters(trainer).items()])


def trained_names(trainer: Trainer) -> set[str]:
    """Return the parameters of the last update; fairseq 0.12.2 has some that are copies."""
    named = trainer.get_model().named_parameters()
    return {name for name, param in named if param.grad is not None}


def movements(trainer: Trainer) -> list[list[torch.Tensor]]:
    """Record how far each pass's weights are from those at the start of its update."""
    _ = trainer.optimizer
    model = trainer.get_model()
    named = dict(model.named_parameters())
    home = {n: p.detach().clone() for n, p in named.items()}
    seen: list[list[torch.Tensor]] = []
    model.register_forward_pre_hook(
        lambda *_: seen.append([p.detach() - home[n] for n, p in named.items()])
    )
    return seen


@every_method
def test_moving_averages_follow_the_weights_between_updates(translation: Path, method: str) -> None:
    """``--store-ema``: never the perturbed ones."""
    flags = ("--store-ema", "--ema-decay", "0.9", "--ema-fp32", "--sam-method", method)
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    samples = toys.batches(trainer)
    average = toys.parameters(trainer)
    assert trainer.ema is not None  # made from the weights of this moment
    for sample in samples[:4]:
        trainer.train_step([sample])
        for name, value in toys.parameters(trainer).items():
            average[name] = 0.9 * average[name] + 0.1 * value
    # fairseq averages a tied embedding once for every name that it has.
    kept = {
        name: value
        for name, value in trainer.ema.get_model().named_parameters()
        if name in trained_names(trainer) and "embed_tokens" not in name
    }
    assert_close(kept, {name: average[name] for name in kept}, rtol=1e-4, atol=1e-6)


@every_method
def test_clipping_acts_on_the_descent_alone(translation: Path, method: str) -> None:
    flags = (*PLAIN, "--sam-method", method)
    free, clipped = (steps_of(translation, *flags, "--clip-norm", c) for c in ("0", "0.01"))
    assert free.norm().item() > 10 * 0.05 * 0.01
    assert clipped.norm().item() == pytest.approx(0.05 * 0.01, rel=1e-3)
    # The same direction: the perturbation was not clipped.
    cosine = torch.nn.functional.cosine_similarity(free, clipped, dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-5)
    task = (*toys.TRANSLATION, *flags, "--clip-norm")
    logs = [toys.trained(translation, *task, c, freq=2)[1][0] for c in ("0", "0.01")]
    for meter in ("sam_gnorm", "sam_loss", "gnorm") if method != "none" else ("gnorm",):
        assert logs[0][meter] == pytest.approx(logs[1][meter], rel=1e-5), meter


@every_method
def test_a_mean_over_sentences_differs_by_a_factor(translation: Path, method: str) -> None:
    """``--sentence-avg`` changes the denominator; ε has no denominator."""
    flags = (*PLAIN, "--sam-method", method)
    per_token, per_sentence = (
        steps_of(translation, *flags, *more) for more in ((), ("--sentence-avg",))
    )
    ratio = (per_sentence.norm() / per_token.norm()).item()
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    group = toys.batches(trainer)[:2]
    assert ratio == pytest.approx(
        sum(s["ntokens"] for s in group) / sum(s["nsentences"] for s in group), rel=1e-4
    )
    torch.testing.assert_close(per_sentence, per_token * ratio, rtol=1e-3, atol=1e-5)


@cache
def after_three_updates(data: Path, method: str, *more: str) -> dict[str, torch.Tensor]:
    flags = (*toys.PRECISE, *PLAIN, "--sam-method", method, *more)
    trainer = toys.make_trainer(data, *flags, dtype=torch.float64)
    samples = toys.batches(trainer)
    for i in range(3):
        trainer.train_step(samples[2 * i : 2 * i + 2])
    return toys.parameters(trainer)


@every_method
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("flag", ["--checkpoint-activations", "--offload-activations"])
def test_recomputed_and_offloaded_activations(translation: Path, method: str, flag: str) -> None:
    expected = after_three_updates(translation, method)
    found = after_three_updates(translation, method, flag)
    assert_close(found, expected, rtol=1e-7, atol=1e-10)


@every_method
def test_layer_drop_chooses_the_same_layers_in_every_pass(translation: Path, method: str) -> None:
    flags = ("--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5", "--sam-method", method)
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    samples = toys.batches(trainer)
    trainer.train_step(samples[:1])
    model = trainer.get_model()
    passes: list[list[str]] = []
    model.register_forward_pre_hook(lambda *_: passes.append([]))
    for name, module in model.named_modules():
        if name.endswith(".fc1"):
            module.register_forward_hook(lambda *_, name=name: passes[-1].append(name))
    dropped = 0
    for sample in samples[1:6]:
        if method == "per_instance":  # sentence by sentence, each with its own draw
            sample = trainer.task.dataset("train").collater(  # noqa: PLW2901
                [trainer.task.dataset("train")[int(sample["id"][0])]]
            )
        passes.clear()
        trainer.train_step([sample])
        assert passes
        assert all(used == passes[0] for used in passes)
        dropped += len(passes[0]) < 4
    assert dropped, "no layer was ever dropped"


@every_perturbed
def test_scalar_quantization_noise_is_the_same_in_every_pass(
    translation: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """At a radius of nothing, training is plain training with the same noise."""
    toys.precision_without_gpu(monkeypatch)  # the noise's module knows GPUs alone
    ends = []
    for flags in (("--sam-method", "none"), ("--sam-method", method, "--sam-rho", "1e-30")):
        trainer = toys.make_trainer(
            translation, *toys.TRANSLATION, "--quant-noise-scalar", "0.5", *flags
        )
        # One sentence at a time: a batch's noise is not that of its sentences alone.
        toys.updates(trainer, [[toys.sentences(trainer, [i])] for i in range(4)])
        ends.append(toys.parameters(trainer))
    assert_same_bits(ends[1], ends[0])


def valid_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "valid_loss" in line]


@every_method
def test_validation_between_updates_changes_nothing(
    translation: Path, tmp_path: Path, method: str
) -> None:
    """``--validate-interval-updates``: it sees the weights themselves, and training goes on."""
    ends, losses = [], []
    for name, every in (("often", "1"), ("at the end", "0")):
        folder = tmp_path / name
        flags = [f for f in toys.flags(toys.TRANSLATION, save=True) if f != "--disable-validation"]
        lines = toys.train_with(
            translation,
            *flags,
            *("--save-dir", str(folder), "--max-epoch", "1", "--no-epoch-checkpoints"),
            *("--sam-method", method, "--validate-interval-updates", every, "--batch-size", "16"),
        )
        losses.append(float(valid_lines(lines)[-1]["valid_loss"]))
        state = torch.load(folder / "checkpoint_last.pt", weights_only=False)
        ends.append(toys.used(state["model"]))
        if every == "1":
            assert len(valid_lines(lines)) > 2
    assert losses[0] == losses[1]
    assert_same_bits(ends[0], ends[1])


@every_method
def test_patience_counts_validations(translation: Path, tmp_path: Path, method: str) -> None:
    flags = [f for f in toys.flags(toys.TRANSLATION, save=True) if f != "--disable-validation"]
    lines = toys.train_with(
        translation,
        *flags,
        *("--save-dir", str(tmp_path / "run"), "--max-epoch", "9", "--no-epoch-checkpoints"),
        *("--sam-method", method, "--lr", "0", "--patience", "2", "--batch-size", "32"),
    )
    assert len(valid_lines(lines)) == 3


@cache
def gradient_of_sgd(
    data: Path, method: str
) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a mini-batch, the weights, and the gradient, which sgd of rate 1 gives away."""
    flags = ("--dropout", "0", "--sam-method", method, *SGD, "--lr", "1")
    trainer = toys.make_trainer(data, *toys.TRANSLATION, *flags)
    sample, before = toys.batches(trainer)[0], toys.parameters(trainer)
    trainer.train_step([sample])
    return sample, before, {n: before[n] - p for n, p in toys.parameters(trainer).items()}


@every_perturbed
@pytest.mark.parametrize(
    "inner",
    [
        ("adafactor", "--scale-parameter"),
        ("nag", "--momentum", "0.9"),
        ("sgd", "--momentum", "0.5", "--weight-decay", "0.1"),
        ("adagrad",),
        ("adadelta",),
        ("adamax",),
    ],
    ids=lambda inner: inner[0],
)
def test_inner_optimizers_get_the_gradient_at_the_perturbed_weights(
    translation: Path, method: str, inner: tuple[str, ...]
) -> None:
    """By hand: the same optimizer, fed with the gradient that sgd gets."""
    name, *options = inner
    flags = ("--dropout", "0", "--sam-method", method)
    sample, before, gradient = gradient_of_sgd(translation, method)

    plain = toys.make_trainer(
        translation, *toys.TRANSLATION, "--optimizer", name, *options, "--lr", "0.01"
    )
    _ = plain.optimizer
    plain.zero_grad()
    for key, param in plain.get_model().named_parameters():
        param.grad = gradient[key].clone()
    plain.optimizer.step()

    ours = toys.make_trainer(
        translation, *toys.TRANSLATION, *flags, "--sam-inner", name, *options, "--lr", "0.01"
    )
    ours.train_step([sample])
    moved = [
        torch.cat([(v - before[n]).flatten() for n, v in toys.parameters(t).items()])
        for t in (plain, ours)
    ]
    assert moved[0].norm() > 0
    # Adaptive optimizers divide a gradient by its own size, rounding included.
    assert (moved[1] - moved[0]).norm() < 0.2 * moved[0].norm()


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("composite", "--sam-inner composite: this optimizer consists of others"),
        ("lamb", "Please install apex to use LAMB"),
    ],
)
def test_inner_optimizers_that_cannot_be_say_so(
    translation: Path, inner: str, message: str
) -> None:
    if importlib.util.find_spec("apex") is not None:
        pytest.skip("apex is installed, so lamb works")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-inner", inner)
    with pytest.raises((ValueError, ImportError), match=message):
        _ = trainer.optimizer


@every_perturbed
def test_a_plain_beginning(translation: Path, method: str) -> None:
    """``--sam-start-update 3``: three updates as without the plugin, the fourth is not."""
    runs = [
        toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        for flags in (
            ("--optimizer", "adam", "--dropout", "0"),
            ("--sam-method", method, "--sam-start-update", "3", "--dropout", "0"),
        )
    ]
    samples = toys.batches(runs[0])
    logs = [toys.updates(t, [[s] for s in samples[:3]]) for t in runs]
    assert_same_bits(toys.parameters(runs[1]), toys.parameters(runs[0]))
    assert all("sam_loss" not in log for log in logs[1])
    for trainer in runs:
        logs.append(toys.updates(trainer, [samples[3:4]]))
    assert "sam_loss" in logs[3][0]
    assert logs[3][0]["loss"] == pytest.approx(logs[2][0]["loss"], rel=1e-6)
    one, two = (toys.parameters(t) for t in runs)
    assert any(not torch.equal(one[n], two[n]) for n in one)


@every_perturbed
def test_plain_updates_in_between(translation: Path, method: str) -> None:
    """``--sam-interval 3``, after one plain update: 1 and 4 are perturbed, with the whole ρ."""
    flags = ("--sam-method", method, "--sam-interval", "3", "--sam-start-update", "1")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    samples = toys.batches(trainer)
    for update in range(6):
        seen = movements(trainer)
        (log,) = toys.updates(trainer, [[samples[update]]])
        largest = max(torch.cat([d.flatten() for d in each]).norm().item() for each in seen)
        if update in {1, 4}:
            assert "sam_loss" in log
            assert largest == pytest.approx(0.05, rel=1e-3)
        else:
            assert "sam_loss" not in log
            assert largest == 0
        for handle in list(trainer.get_model()._forward_pre_hooks):
            trainer.get_model()._forward_pre_hooks.pop(handle)


@every_perturbed
@pytest.mark.parametrize("rule", ["no_bias_norm", "norm_only"])
def test_rules_say_which_parameters_move(translation: Path, method: str, rule: str) -> None:
    flags = ("--sam-method", method, "--sam-rule", rule, "--sam-rho", "0.1", "--lr", "0")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    samples = toys.batches(trainer)
    trainer.train_step(samples[:1])
    seen = movements(trainer)
    trainer.train_step(samples[1:2])
    names = list(dict(trainer.get_model().named_parameters()))
    trained = trained_names(trainer)
    moved = {n for each in seen for n, d in zip(names, each, strict=True) if d.any()}
    norms = {n for n in names if "layer_norm" in n}
    allowed = norms if rule == "norm_only" else {n for n in trained if "bias" not in n} - norms
    assert moved == allowed
    lengths = [torch.cat([d.flatten() for d in each]).norm().item() for each in seen]
    assert max(lengths) == pytest.approx(0.1, rel=1e-4)


@every_perturbed
@pytest.mark.parametrize("adaptive", [False, True])
def test_rules_and_adaptive_weights_equal_the_slow_twin(
    translation: Path,
    float64: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    adaptive: bool,
) -> None:
    def rule(name: str, module: torch.nn.Module) -> float:
        return 2.0 if "fc1" in name else 0.0 if "out_proj" in name else 1.0

    monkeypatch.setitem(RADIUS_RULES._entries, "mine", rule)
    flags = ["--sam-method", method, "--sam-rule", "mine", "--sam-rho", "0.2"]
    flags += ["--sam-inner", "sgd", "--lr", "1", *(["--sam-adaptive"] if adaptive else [])]
    trainer = toys.make_trainer(translation, *toys.PRECISE, *flags, dtype=float64)
    (sample,) = toys.batches(trainer)[:1]
    named = toys.parameters(trainer)
    stretch = [
        rule(n, trainer.get_model())
        * (p.abs() + ADAPTIVE_OFFSET if adaptive and "weight" in n else torch.ones_like(p))
        for n, p in named.items()
    ]
    at, losses = list(named.values()), losses_at(trainer, [sample])
    if method == "sam":
        mean = reference.sam_gradient(losses, at, rho=0.2, stretch=stretch)
    elif method == "per_instance":
        mean = reference.per_instance_gradient(losses, at, rho=0.2, stretch=stretch)
    else:
        twin = toys.make_trainer(translation, *toys.PRECISE, *flags, dtype=float64)
        _ = twin.optimizer
        space = hook._runs[twin].weights.space
        used = reference.plain_gradient(losses, at)
        moving = [p for p, g in zip(space, used, strict=True) if g.any()]
        drawn = iter(space.only(moving).gaussian(radius=0.2, seed=seed_for(3, 0)))
        noise = [torch.zeros_like(g) for g in used]
        for part, gradient, factor in zip(noise, used, stretch, strict=True):
            step = next(drawn) if gradient.any() and factor.any() else None
            if step is not None:
                part.copy_(step)
        mean = reference.delta_sam_gradient(losses, at, noise, rho=0.2, eta=1e-4, stretch=stretch)
    trainer.train_step([sample])
    share = sample["nsentences"] / sample["ntokens"]
    expected = {n: p - g * share for (n, p), g in zip(named.items(), mean, strict=True)}
    assert_close(toys.parameters(trainer), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sam-rule", "norms"), "unknown radius rule 'norms'"),
        (("--sam-interval", "0"), "--sam-interval must be greater than 0"),
        (("--sam-start-update", "-1"), "--sam-start-update must be at least 0"),
    ],
)
def test_bad_values_stop_before_the_first_update(
    translation: Path, flags: tuple[str, ...], message: str
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    with pytest.raises((ValueError, UnknownName), match=message):
        _ = trainer.optimizer


def test_a_rule_that_leaves_frozen_parameters_alone_is_refused(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-rule", "norm_only")
    for name, param in trainer.get_model().named_parameters():
        param.requires_grad_("layer_norm" not in name)
    with pytest.raises(ValueError, match="norm_only leaves no parameter that trains"):
        _ = trainer.optimizer


@pytest.mark.parametrize("value", [-1.0, float("nan"), 0.0])
def test_rules_that_make_no_sense_are_refused(
    translation: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setitem(RADIUS_RULES._entries, "mine", lambda name, module: value)
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-rule", "mine")
    message = "leaves no parameter" if value == 0 else "must be a finite number of at least 0"
    with pytest.raises(ValueError, match=f"--sam-rule mine .*{message}"):
        _ = trainer.optimizer
