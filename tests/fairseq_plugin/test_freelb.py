"""FreeLB: K passes with adversarial noise, alone and inside sharpness-aware steps."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer
from torch import Tensor, nn

from deltasam_fairseq.core import reference
from deltasam_fairseq.core.graph import differentiate
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.fairseq_plugin import freelb, hook
from deltasam_fairseq.fairseq_plugin.config import FreeLBSettings
from deltasam_fairseq.fairseq_plugin.criterions import readers
from deltasam_fairseq.fairseq_plugin.embedding_noise import embedding_noise, encoder_of
from tests.fairseq_plugin.precision import MODES
from tests.fairseq_plugin.twins import Functional, direction
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits

ROOT = Path(__file__).resolve().parents[2]
STEPS, LR, INIT, BOUND = 3, 0.8, 0.5, 0.9
# Noise that is large beside the toy's embeddings, and that reaches the bound.
NOISE = (
    *("--freelb-steps", str(STEPS), "--freelb-lr", str(LR)),
    *("--freelb-init", str(INIT), "--freelb-max-norm", str(BOUND)),
)
# Without a draw, so that updates can be split and compared.
FIXED = (*NOISE[:4], "--freelb-init", "0", *NOISE[6:])
NONE = ("--sam-method", "none")
SGD = ("--sam-inner", "sgd", "--lr", "0.5")
BATCHED = ("--sam-method", "per_instance", "--sam-per-instance-engine", "batched")


class Shifted(nn.Module):
    """A table of embeddings, with noise on what it looks up: another door than the plugin's."""

    def __init__(self, table: Any, noise: Tensor) -> None:
        super().__init__()
        self.table = table
        self.noise = noise

    def forward(self, tokens: Tensor) -> Any:
        return self.table(tokens) + self.noise * tokens.ne(self.table.padding_idx).unsqueeze(-1)


@contextmanager
def shifted(model: Any, noise: Tensor) -> Iterator[None]:
    encoder = encoder_of(model)
    table = encoder.embed_tokens
    encoder.embed_tokens = Shifted(table, noise)
    try:
        yield
    finally:
        encoder.embed_tokens = table


class Twin:
    """FreeLB of one batch, slow: losses as functions of weights and noise, K of them in a graph."""

    def __init__(self, trainer: Trainer, sample: Any, norm: str = "l2") -> None:
        self.model = Functional(trainer.get_model())
        self.criterion = trainer.get_criterion()
        self.sample = sample
        self.norm = norm
        tokens = sample["net_input"]["src_tokens"]
        words = tokens.ne(1)
        size = encoder_of(trainer.get_model()).embed_tokens.embedding_dim
        drawn = torch.zeros(*tokens.shape, size, dtype=torch.float64).uniform_(-INIT, INIT)
        self.first = drawn * words.unsqueeze(-1)
        if norm == "l2":
            self.first /= (words.sum(1).double().view(-1, 1, 1) * size).sqrt()
        self.state = torch.get_rng_state()

    def losses(self, weights: Sequence[Tensor], noise: Tensor | None = None) -> Tensor:
        """Score the sentences, always with the same dropout."""
        torch.set_rng_state(self.state)
        self.model.at(weights)
        with shifted(self.model, self.first if noise is None else noise):
            return readers.token_losses(self.criterion, self.model, self.sample).losses

    def path(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """List the K noises at some weights."""
        path = [self.first]
        for _ in range(STEPS - 1):
            leaf = path[-1].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.losses(weights, leaf).sum(), leaf)
            following = []
            for own, up in zip(path[-1], gradient, strict=True):
                if self.norm == "l2":
                    moved = own + LR * up / up.norm()
                    following.append(moved * min(1.0, BOUND / float(moved.norm())))
                else:
                    following.append((own + LR * up / up.abs().max()).clamp(-BOUND, BOUND))
            path.append(torch.stack(following))
        return path

    def gradient(self, at: Sequence[Tensor], weights: Tensor | float = 1.0) -> list[Tensor]:
        """Differentiate the mean over the noises of the weighted losses' sum."""
        leaves = [w.detach().clone().requires_grad_() for w in at]
        path = [noise.detach() for noise in self.path(leaves)]
        total = torch.zeros((), dtype=torch.float64)
        for noise in path:
            total = total + (weights * self.losses(leaves, noise)).sum() / STEPS
        return differentiate(total, leaves)


def expected_step(trainer: Trainer, group: Sequence[Any], method: str, norm: str) -> list[Tensor]:
    """Return the gradient that the inner optimizer should see, from the slow twin."""
    update = trainer.get_num_updates()
    torch.manual_seed(3 + update)
    at = list(toys.parameters(trainer).values())
    twins = []
    trainer.get_model().train()
    for sample in group:
        twins.append(Twin(trainer, sample, norm))
        twins[-1].losses(at)  # leaves the generator where the next batch starts

    def total(weights: Sequence[Tensor], given: Sequence[Any]) -> list[Tensor]:
        parts = [t.gradient(weights, g) for t, g in zip(twins, given, strict=True)]
        return [sum(tensors) for tensors in zip(*parts, strict=True)]

    plain = total(at, [1.0] * len(twins))
    found = plain
    if method != "none":
        ascent = plain
        if method == "delta_sam":
            noise = direction(at, plain, radius=0.05, seed=seed_for(3, update))
            ascent = total(
                at, [reference.delta_sam_weights(t.losses, at, noise, eta=1e-4) for t in twins]
            )
        length = torch.stack([v.square().sum() for v in ascent]).sum().sqrt()
        there = [w + 0.05 * v / length for w, v in zip(at, ascent, strict=True)]
        found = total(there, [1.0] * len(twins))
    tokens = sum(sample["ntokens"] for sample in group)
    return [g / tokens for g in found]


@pytest.mark.parametrize("freq", [1, 2])
@pytest.mark.parametrize(
    ("method", "norm"), [("none", "l2"), ("none", "linf"), ("sam", "l2"), ("delta_sam", "l2")]
)
def test_equals_the_slow_twin_in_float64(
    translation: Path, float64: torch.dtype, method: str, norm: str, freq: int
) -> None:
    """With dropout, which is the same in all passes, and with noise that is drawn."""
    flags = ("--sam-method", method, "--freelb-norm", norm, "--dropout", "0.1")
    trainer = toys.make_trainer(
        translation, *toys.PRECISE, *SGD, *NOISE, *flags, dtype=torch.float64
    )
    samples = toys.batches(trainer)
    for update in range(2):
        group = samples[update * freq : (update + 1) * freq]
        before = toys.parameters(trainer)
        step = expected_step(trainer, group, method, norm)
        trainer.train_step(group)
        expected = {n: before[n] - 0.5 * g for n, g in zip(before, step, strict=True)}
        assert_close(toys.parameters(trainer), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_every_sentence_has_its_own_perturbation_of_its_k_losses(
    translation: Path, float64: torch.dtype, engine: str
) -> None:
    """``per_instance`` is SAM around FreeLB of each sentence; micro-batches of one have that."""
    ends, logs = [], []
    for method, size in (("per_instance", 4), ("sam", 1)):
        flags = ("--sam-method", method, "--sam-scope", "micro")
        trainer = toys.make_trainer(
            translation,
            *(*toys.PRECISE, *SGD, *FIXED, *flags, "--sam-per-instance-engine", engine),
            dtype=float64,
        )
        group = [toys.sentences(trainer, range(start, start + size)) for start in range(0, 8, size)]
        logs += toys.updates(trainer, [group])
        ends.append(toys.parameters(trainer))
    assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-10)
    for meter in ("loss", "sam_loss", "freelb_delta_norm"):
        assert logs[0][meter] == pytest.approx(logs[1][meter], rel=1e-6), meter


def test_losses_that_do_not_add_up_are_still_noticed(translation: Path) -> None:
    """The check of ``per_instance``'s loop scores the sentences without noise."""
    flags = (*NOISE, "--sam-method", "per_instance", "--sam-per-instance-engine", "loop")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    criterion = trainer.get_criterion()
    forward = criterion.forward

    def mean(model: Any, sample: Any, reduce: bool = True) -> Any:
        loss, size, output = forward(model, sample, reduce)
        return loss / sample["nsentences"], size, output

    criterion.forward = mean
    trainer.save_checkpoint = lambda *a, **k: None
    with pytest.raises(ValueError, match="losses that do not add up"):
        trainer.train_step(toys.batches(trainer)[:1])


@pytest.mark.parametrize("method", ["none", "sam"])
def test_no_noise_is_the_plain_gradient(translation: Path, method: str) -> None:
    """Dropout is on: all passes see the same masks, and the generators end in the same place."""
    ends, states = [], []
    for extra in ((), (*FIXED, "--freelb-lr", "0")):
        flags = (*toys.TRANSLATION, "--sam-method", method, *SGD, *extra)
        trainer, _ = toys.trained(translation, *flags, freq=2)
        ends.append(toys.parameters(trainer))
        states.append(torch.get_rng_state())
    assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(*states)


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect the noise of every pass."""
    seen: list[Tensor] = []
    inner = embedding_noise

    def spied(model: Any, noise: Tensor, **how: Any) -> Any:
        seen.append(noise.detach().clone())
        return inner(model, noise, **how)

    monkeypatch.setattr(freelb, "embedding_noise", spied)
    return seen


MODELS: dict[str, tuple[str, list[str]]] = {
    "transformer": ("translation", toys.TRANSLATION),
    "bart": ("translation", [*toys.TRANSLATION, "--arch", "bart_base"]),
    "roberta": ("prediction", toys.PREDICTION),
    "bert": ("prediction", toys.BERT),
}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", MODELS)
def test_noise_reaches_the_logits_and_stays_in_its_ball(
    request: pytest.FixtureRequest, noises: list[Tensor], name: str, norm: str
) -> None:
    data, flags = MODELS[name]
    trainer = toys.make_trainer(
        request.getfixturevalue(data), *flags, *NONE, *NOISE, "--freelb-norm", norm
    )
    outputs: list[Tensor] = []
    masks: list[Tensor] = []
    trainer.get_model().register_forward_hook(lambda _, __, out: outputs.append(out[0].detach()))
    dropout = encoder_of(trainer.get_model()).dropout_module
    dropout.register_forward_hook(lambda _, x, y: masks.append((y == 0) & (x[0] != 0)))
    sample = toys.sentences(trainer, range(6))
    (log,) = toys.updates(trainer, [[sample]])
    pads = sample["net_input"]["src_tokens"].eq(1)
    assert pads.any()
    assert len(noises) == len(outputs) == STEPS
    assert masks[0].any()
    assert all(torch.equal(masks[0], mask) for mask in masks)
    for noise, following in zip(noises, noises[1:], strict=False):
        assert noise.dtype == torch.float32
        assert (following - noise)[~pads].abs().sum(-1).gt(0).all()
    for noise in noises:
        assert not noise[pads].any()
        assert noise[~pads].abs().sum(-1).gt(0).all()
        assert freelb.norms_of(noise, norm).max() <= BOUND * (1 + 1e-6)
    assert not torch.allclose(outputs[0], outputs[-1], atol=1e-3)
    expected = freelb.norms_of(noises[-1], norm).mean().item()
    assert log["freelb_delta_norm"] == pytest.approx(expected, rel=1e-5)
    assert vars(trainer.task).keys().isdisjoint({"train_step", "reduce_metrics"})


def test_the_loss_that_is_logged_is_that_of_the_first_noise(translation: Path) -> None:
    """Without a first noise it is the plain loss, so that curves compare; validation is plain."""
    logs = []
    for extra in ((), FIXED):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *NONE, *extra)
        logs += toys.updates(trainer, [toys.batches(trainer)[:2]])
    for meter in ("loss", "nll_loss", "wpb", "bsz"):
        assert logs[1][meter] == pytest.approx(logs[0][meter], rel=1e-6), meter
    assert logs[1].keys() - logs[0].keys() == {"freelb_delta_norm"}


def test_a_sentence_without_a_usable_gradient_keeps_its_noise() -> None:
    settings = FreeLBSettings(steps=2, lr=0.1, max_norm=0)
    noise = torch.randn(4, 3, 2)
    gradient = torch.randn(4, 3, 2)
    gradient[1] = 0
    gradient[2, 0, 0] = torch.inf
    gradient[3, 0, 0] = torch.nan
    for norm in ("l2", "linf"):
        how = FreeLBSettings(steps=2, lr=0.1, max_norm=0, norm=norm)
        # Neither a loss scale nor a tiny weight of the sentence changes the direction.
        for unit in (1.0, 2.0**15, 1e-25):
            moved = freelb.moved(noise, gradient * unit, how)
            assert_same_bits([moved[1:]], [noise[1:]])
            length = freelb.norms_of(moved - noise, norm)[0].item()
            assert length == pytest.approx(settings.lr, rel=1e-5)
            assert_close([moved], [freelb.moved(noise, gradient, how)], rtol=1e-5, atol=1e-7)


def test_the_first_noise_has_the_size_of_the_paper() -> None:
    """``init / sqrt(3)`` in l2, whatever the length; in linf, uniform; inside the ball."""
    words = torch.ones(2, 50, 1, dtype=torch.bool)
    words[1, 10:] = False
    for norm, size in (("l2", 0.4 / 3**0.5), ("linf", 0.4)):
        how = FreeLBSettings(steps=2, init=0.4, max_norm=0, norm=norm)
        found = freelb.first_noise(torch.zeros(2, 50, 64), words, how)
        assert freelb.norms_of(found, norm).tolist() == pytest.approx([size] * 2, rel=0.03)
        assert not found[1, 10:].any()
        inside = FreeLBSettings(steps=2, init=0.4, max_norm=0.1, norm=norm)
        found = freelb.first_noise(torch.zeros(2, 50, 64), words, inside)
        assert freelb.norms_of(found, norm).tolist() == pytest.approx([0.1] * 2, rel=1e-5)


def test_a_batch_that_a_criterion_repeats_has_the_noise_of_every_view(
    translation: Path, float64: torch.dtype
) -> None:
    """R-Drop and R3F score ``[x; x]`` in one forward pass."""
    ends = []
    for views in (1, 2):
        trainer = toys.make_trainer(translation, *toys.PRECISE, *SGD, *NONE, *FIXED, dtype=float64)
        criterion = trainer.get_criterion()
        forward = criterion.forward

        def repeated(
            model: Any, sample: Any, views: int = views, forward: Callable[..., Any] = forward
        ) -> Any:
            twice = {
                "net_input": {
                    k: v.repeat(views, 1) for k, v in sample["net_input"].items() if v.dim() == 2
                },
                "target": sample["target"].repeat(views, 1),
                "ntokens": sample["ntokens"],
                "nsentences": sample["nsentences"],
            }
            lengths = sample["net_input"]["src_lengths"].repeat(views)
            twice["net_input"]["src_lengths"] = lengths
            loss, size, output = forward(model, twice)
            return loss / views, size, output

        criterion.forward = repeated
        toys.updates(trainer, [toys.batches(trainer)[:1]])
        ends.append(toys.parameters(trainer))
    assert_close(ends[1], ends[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["sam", "delta_sam"])
@pytest.mark.parametrize("scope", ["update", "micro"])
def test_the_passes_of_a_step(translation: Path, method: str, scope: str) -> None:
    """K at w and K at w + eps; delta-SAM weighs a sentence once, at its first noise."""
    flags = ("--sam-method", method, "--sam-scope", scope, *NOISE)
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    samples = toys.batches(trainer)
    trainer.train_step(samples[:1])
    calls: list[int] = []
    trainer.get_model().register_forward_hook(lambda *_: calls.append(1))
    (log,) = toys.updates(trainer, [samples[1:3]])
    assert len(calls) == 2 * (2 * STEPS + (2 if method == "delta_sam" else 0))
    if method == "delta_sam":
        assert log["sam_ess"] <= sum(s["nsentences"] for s in samples[1:3])


def test_what_a_probe_finds_out_first_is_no_part_of_the_noises_gradient(
    translation: Path, noises: list[Tensor]
) -> None:
    """delta-SAM's first update runs a backward pass to see which parameters are used."""
    paths = []
    for known in (False, True):
        # The search keeps all layers, which another gradient comes from.
        flags = (*toys.TRANSLATION, *NOISE, "--encoder-layerdrop", "0.9")
        trainer = toys.make_trainer(translation, *flags)
        _ = trainer.optimizer
        if known:
            everything = [n for n, _ in trainer.get_model().named_parameters()]
            hook._runs[trainer].covered.load(everything)
        noises.clear()
        trainer.train_step(toys.batches(trainer)[:1])
        paths.append(list(noises[:STEPS]))
    assert_close(paths[0], paths[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("failing_pass", [1, 2, 3])
def test_all_is_back_after_an_exception(translation: Path, failing_pass: int) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *NONE, *NOISE)
    toys.break_forward(trainer, failing_pass, KeyError("broken on purpose"))
    trainer.save_checkpoint = lambda *a, **k: None
    with pytest.raises(KeyError, match="on purpose"):
        trainer.train_step(toys.batches(trainer)[:1])
    assert "train_step" not in vars(trainer.task)
    assert "forward_embedding" not in vars(encoder_of(trainer.get_model()))


@pytest.mark.parametrize("mode", MODES)
def test_precisions(translation: Path, device: torch.device, mode: str) -> None:
    """The loss and the noise of single precision, whatever the loss scale."""
    logs = []
    for how in ("fp32", mode):
        trainer = toys.make_trainer(
            translation, *toys.TRANSLATION, *NONE, *NOISE, "--dropout", "0", *MODES[how]
        )
        logs.append(toys.updates(trainer, [toys.batches(trainer)[:2]])[0])
        assert trainer.get_num_updates() == 1
    for meter in ("loss", "gnorm", "freelb_delta_norm"):
        assert logs[1][meter] == pytest.approx(logs[0][meter], rel=0.03), meter


@pytest.mark.parametrize("mode", ["fp16", "memory-efficient fp16", "amp"])
@pytest.mark.parametrize("failing_pass", [1, 3])
def test_an_overflow_in_a_pass_skips_the_update(
    translation: Path, device: torch.device, mode: str, failing_pass: int
) -> None:
    """As fairseq does: half the scale; with ``--amp`` the batch is tried again."""
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *NONE, *NOISE, *MODES[mode])
    samples = toys.batches(trainer)
    toys.updates(trainer, [samples[:1]])
    before = toys.parameters(trainer)
    calls = toys.break_forward(trainer, failing_pass, by=torch.inf)
    trainer.train_step(samples[1:2])
    if mode == "amp":
        assert len(calls) == 2 * STEPS
        assert trainer.get_num_updates() == 2
        assert trainer.optimizer.scaler.get_scale() == 64
    else:
        assert len(calls) == STEPS
        assert trainer.get_num_updates() == 1
        assert trainer.optimizer.scaler.loss_scale == 64
        assert_same_bits(toys.parameters(trainer), before)


BAD: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "no encoder": (
        toys.LSTM,
        NONE,
        "LSTMModel has LSTMEncoder; use a model .* or pass --freelb-steps 0",
    ),
    "the batched engine": (
        toys.TRANSLATION,
        BATCHED,
        "batched: with FreeLB .* all passes together, .*; or pass auto",
    ),
    "--tpu": (toys.TRANSLATION, (*NONE, "--tpu"), "not supported beside --tpu; pass --freelb"),
    "blocks of quantization noise": (
        toys.TRANSLATION,
        (*NONE, "--quant-noise-pq", "0.1"),
        "not supported beside --quant-noise-pq; pass --freelb",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_be_wrong_is_refused_at_start_up(translation: Path, case: str) -> None:
    toy, flags, message = BAD[case]
    trainer = toys.make_trainer(translation, *toy, *flags, *NOISE)
    trainer.cfg.common.tpu = case == "--tpu"
    with pytest.raises(ValueError, match=message):
        trainer._build_optimizer()


def test_a_step_that_is_not_fairseqs_own_is_refused_at_start_up(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *NONE, *NOISE)
    own = trainer.task.train_step

    def logged(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    trainer.task.train_step = logged
    with pytest.raises(ValueError, match=r"TranslationTask trains by .*logged; pass --freelb"):
        trainer._build_optimizer()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--freelb-steps", "-1"), "--freelb-steps must be at least 0"),
        (("--freelb-lr", "-0.1"), "--freelb-lr must be at least 0"),
        (("--freelb-init", "inf"), "--freelb-init must be a finite number"),
        (("--freelb-max-norm", "nan"), "--freelb-max-norm must be a finite number"),
    ],
)
def test_values_out_of_range_are_refused(
    translation: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        toys.make_trainer(translation, *toys.TRANSLATION, *flags).optimizer  # noqa: B018


def test_a_batch_without_tokens_is_refused(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *NONE, *NOISE)
    (sample,) = toys.batches(trainer)[:1]
    sample["net_input1"] = sample.pop("net_input")
    trainer.save_checkpoint = lambda *a, **k: None
    with pytest.raises(ValueError, match="FreeLB shifts the embeddings of net_input's src_tokens"):
        trainer.train_step([sample])


@pytest.mark.parametrize("method", ["none", "delta_sam"])
def test_a_resumed_run_is_the_undisturbed_one(
    translation: Path, tmp_path: Path, warm_python: str, method: str
) -> None:
    """The undisturbed one is ``fairseq-train`` itself, with ``--user-dir``, where it is alone."""
    straight, resumed = ("--save-dir", str(tmp_path / "straight")), ("--save-dir", str(tmp_path))
    flags = [
        *(*toys.TRANSLATION, "--sam-method", method, "--freelb-steps", "2"),
        *("--max-update", "6", "--save-interval-updates", "3"),
    ]
    toys.train(translation, *flags, *resumed, "--max-update", "3", save=True)
    toys.train(translation, *flags, *resumed, save=True)
    if method == "none":
        run = (warm_python, "-m", "fairseq_cli.train", str(translation))
        plugin = ("--user-dir", str(ROOT / "user_dir"))
        command = [*run, *plugin, *toys.flags(flags, save=True), *straight]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "freelb_delta_norm" in done.stdout + done.stderr
    else:
        toys.train(translation, *flags, *straight, save=True)
    ends = [
        torch.load(Path(folder) / "checkpoint_last.pt", weights_only=False)
        for _, folder in (resumed, straight)
    ]
    assert ends[0]["optimizer_history"][-1]["num_updates"] == 6
    assert_same_bits(toys.used(ends[0]["model"]), toys.used(ends[1]["model"]))
