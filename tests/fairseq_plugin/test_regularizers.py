"""R-Drop, R3F and SMART around fairseq's models, each against a twin of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fairseq
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fairseq.distributed.module_proxy_wrapper import ModuleProxyWrapper
from fairseq.logging import metrics
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.core import reference
from deltasam_fairseq.core.groups import dealt
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.fairseq_plugin import hook
from deltasam_fairseq.fairseq_plugin.criterions.base import own_losses
from deltasam_fairseq.fairseq_plugin.criterions.regularized import ModelBatch
from deltasam_fairseq.fairseq_plugin.embedding_noise import (
    embedding_noise,
    embeddings_shape,
    encoder_of,
)
from deltasam_fairseq.objectives.regularizers import worst_noise
from tests.fairseq_plugin.twins import Functional, direction
from tests.support import fairseq_toys as toys
from tests.support.workers import run_workers

SEQUENCES = [
    *("--task", "translation", "--source-lang", "src", "--target-lang", "tgt"),
    *("--criterion", "deltasam_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
    *("--arch", "transformer", "--share-all-embeddings"),
    *toys.TINY,
]
OWN = ("--criterion", "deltasam_sentence_prediction")
CLASSES = [*toys.PREDICTION, *OWN]
NUMBERS = [*CLASSES, "--regression-target", "--num-classes", "1", "--sentence-metrics", "pearson"]
KINDS: dict[str, tuple[str, list[str]]] = {
    "sequences": ("translation", SEQUENCES),
    "bart": ("translation", [*SEQUENCES, "--arch", "bart_base"]),
    "classes": ("prediction", CLASSES),
    "bert": ("prediction", [*toys.BERT, *OWN]),
    "numbers": ("regression", NUMBERS),
}
REGULARIZERS: dict[str, tuple[str, ...]] = {
    "rdrop": ("--regularizer", "rdrop"),
    "r3f": ("--regularizer", "r3f", "--r3f-eps", "0.5"),
    "r3f normal": ("--regularizer", "r3f", "--r3f-eps", "0.5", "--r3f-noise", "normal"),
    "smart": (
        *("--regularizer", "smart", "--smart-eps", "0.3", "--smart-step", "0.2"),
        *("--smart-sigma", "0.1", "--smart-steps", "2"),
    ),
}
STILL = ("--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0")
WEIGHT = 0.7


class Case:
    """A criterion, a model in float64 and a padded batch."""

    def __init__(self, data: Path, flags: list[str], *more: str) -> None:
        self.trainer = toys.make_trainer(data, *flags, *more, dtype=torch.float64)
        self.criterion, self.model = self.trainer.get_criterion(), self.trainer.get_model()
        dataset = self.trainer.task.dataset("train")
        self.sample = dataset.collater([dataset[i] for i in range(5)])
        self.tokens = self.sample["net_input"]["src_tokens"]
        self.pad = self.criterion.padding_idx
        assert self.tokens.eq(self.pad).any()
        self.model.train()
        self.criterion.train()

    def losses(self) -> Tensor:
        torch.manual_seed(7)
        return own_losses(self.criterion, self.model, self.sample).losses

    def gradient(self, losses: Tensor) -> list[Tensor]:
        params = [p for p in self.model.parameters() if p.requires_grad]
        found = torch.autograd.grad(losses.sum(), params, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


def case_maker(request: pytest.FixtureRequest) -> Callable[..., Case]:
    data, flags = KINDS[request.param]
    folder = request.getfixturevalue(data)
    still = () if data == "translation" else ("--pooler-dropout", "0")
    return lambda *more: Case(folder, flags, *more, *(still if STILL[0] in more else ()))


@pytest.fixture(params=KINDS)
def every_kind(request: pytest.FixtureRequest) -> Callable[..., Case]:
    return case_maker(request)


@pytest.fixture(params=["sequences", "classes", "numbers"])
def kind(request: pytest.FixtureRequest) -> Callable[..., Case]:
    return case_maker(request)


@pytest.fixture(params=REGULARIZERS)
def regularizer(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return (*REGULARIZERS[request.param], "--regularizer-weight", str(WEIGHT))


# The twin: two passes of the batch one below the other, and definitions word after word.


def log_probabilities(case: Case, logits: Tensor) -> Tensor:
    return logits - logits.exp().sum(-1, keepdim=True).log()


def plain(case: Case, logits: Tensor) -> Tensor:
    """The criterion's loss of each sentence."""
    targets = case.sample["target"]
    if logits.dim() == 1:
        return (logits - targets.view(-1).to(logits)).square()
    if logits.dim() == 2:
        rows = log_probabilities(case, logits)
        return torch.stack([-row[int(t)] for row, t in zip(rows, targets.view(-1), strict=True)])
    losses = []
    for rows, words in zip(log_probabilities(case, logits), targets, strict=True):
        total = logits.new_zeros(())
        for row, word in zip(rows, words, strict=True):
            if word != case.pad:
                share = 0.1 / (len(row) - 1)
                total = total - (1 - 0.1 - share) * row[word] - share * row.sum()
        losses.append(total)
    return torch.stack(losses)


def apart(case: Case, one: Tensor, other: Tensor) -> Tensor:
    """The symmetric divergence of each sentence, or the squared error."""
    if one.dim() == 1:
        return (one - other).square()
    a, b = (log_probabilities(case, side) for side in (one, other))
    every = ((a.exp() - b.exp()) * (a - b)).sum(-1)
    if one.dim() == 2:
        return every
    return (every * case.sample["target"].ne(case.pad)).sum(1)


def doubled(case: Case, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The outputs of a batch of twice as many sentences."""
    inputs = {
        name: torch.cat([value, value]) if torch.is_tensor(value) else value
        for name, value in case.sample["net_input"].items()
    }
    logits = run(case, inputs, noise)
    return logits[:5], logits[5:]


def run(case: Case, inputs: Any, noise: Tensor | None = None) -> Tensor:
    extra: dict[str, Any] = {}
    if hasattr(case.model, "classification_heads"):
        extra["features_only"] = True
        extra["classification_head_name"] = "sentence_classification_head"
    if hasattr(case.model, "decoder"):
        extra = {}
    shift = (
        torch.zeros(embeddings_shape(case.model, inputs["src_tokens"])) if noise is None else noise
    )
    with embedding_noise(case.model, shift.double()):
        logits = case.model(**inputs, **extra)[0]
    return logits.view(-1) if logits.shape[-1] == 1 else logits


def twin(case: Case, flags: tuple[str, ...]) -> Tensor:
    torch.manual_seed(7)
    name = flags[1]
    if name == "rdrop":
        first, second = doubled(case)
        half = 1.0 if first.dim() == 1 else 0.5
        losses = plain(case, first) + plain(case, second)
        return losses + WEIGHT * half * apart(case, first, second)
    shape = embeddings_shape(case.model, case.tokens)
    if name == "r3f":
        z = torch.empty(shape, dtype=torch.float64)
        z = z.normal_(0, 0.5) if "normal" in flags else z.uniform_(-0.5, 0.5)
    else:
        z = torch.empty(shape, dtype=torch.float64).normal_(0, 0.1)
        with torch.no_grad():
            clean = run(case, case.sample["net_input"])
        for _ in range(2):
            z = z.detach().requires_grad_()
            noised = run(case, case.sample["net_input"], z)
            (g,) = torch.autograd.grad(apart(case, noised, clean).sum(), z)
            for i in range(5):
                g[i] /= g[i].abs().max()
            z = (z + 0.2 * g).clamp(-0.3, 0.3).detach()
    clean, noised = doubled(case, torch.cat([torch.zeros_like(z), z]))
    return plain(case, clean) + WEIGHT * apart(case, clean, noised)


@pytest.mark.usefixtures("float64")
def test_losses_and_gradients_are_the_twins(
    every_kind: Callable[..., Case], regularizer: tuple[str, ...]
) -> None:
    case = every_kind(*regularizer, "--dropout", "0.2")
    found, expected = case.losses(), twin(case, regularizer)
    bound = 1e-9 if found.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound, check_dtype=False)
    for a, b in zip(case.gradient(found), case.gradient(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=10 * bound, atol=10 * bound)
    # The penalty is a part of it.
    without = every_kind(*regularizer[:-2], "--regularizer-weight", "0", "--dropout", "0.2")
    assert not torch.allclose(found, without.losses(), rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_without_dropout_and_noise_nothing_is_added(
    kind: Callable[..., Case], regularizer: tuple[str, ...]
) -> None:
    quiet = {"rdrop": (), "r3f": ("--r3f-eps", "0"), "smart": ("--smart-eps", "1e-300")}
    usual = kind(*STILL)
    case = kind(*regularizer, *STILL, *quiet[regularizer[1]])
    times = 2 if regularizer[1] == "rdrop" else 1
    plain_losses, found = usual.losses(), case.losses()
    torch.testing.assert_close(found, times * plain_losses, rtol=1e-6, atol=1e-9)
    for a, b in zip(case.gradient(found), usual.gradient(times * plain_losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_validation_is_the_plain_criterions(
    kind: Callable[..., Case], regularizer: tuple[str, ...]
) -> None:
    usual, case = kind(), kind(*regularizer)
    logs = []
    for one in (usual, case):
        one.model.eval()
        one.criterion.eval()
        read = own_losses(one.criterion, one.model, one.sample)
        logs.append(read.logging_output)
        assert "regularizer" not in read.logging_output
    for key, value in logs[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(logs[1][key])), key


@pytest.mark.usefixtures("float64")
def test_wider_padding_changes_nothing(
    kind: Callable[..., Case], regularizer: tuple[str, ...]
) -> None:
    if regularizer[1] != "rdrop":  # noise is drawn for every column: there would be other noise
        regularizer = (*regularizer, "--r3f-eps", "0") if regularizer[1] == "r3f" else (
            *regularizer, "--smart-sigma", "0"
        )  # fmt: skip
    case = kind(*regularizer, *STILL)
    before = case.losses()
    inputs = case.sample["net_input"]
    for name in ("src_tokens", "prev_output_tokens"):
        if name in inputs:
            inputs[name] = F.pad(inputs[name], (0, 3), value=case.pad)
    if "prev_output_tokens" in inputs:
        case.sample["target"] = F.pad(case.sample["target"], (0, 3), value=case.pad)
    torch.testing.assert_close(case.losses(), before, rtol=1e-8, atol=1e-8)


def test_the_sample_is_not_changed(kind: Callable[..., Case], regularizer: tuple[str, ...]) -> None:
    case = kind(*regularizer)
    before = copy.deepcopy(case.sample)
    case.losses()
    assert str(before) == str(case.sample)


def test_training_logs_one_view(kind: Callable[..., Case]) -> None:
    case = kind("--regularizer", "rdrop", *STILL)
    torch.manual_seed(7)
    read = own_losses(case.criterion, case.model, case.sample)
    usual = kind(*STILL)
    expected = own_losses(usual.criterion, usual.model, usual.sample)
    assert read.sample_size == expected.sample_size
    assert float(read.logging_output["loss"]) == pytest.approx(
        float(expected.losses.sum().detach())
    )
    assert float(read.logging_output["regularizer"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("float64")
def test_smarts_noise_stays_in_its_ball_and_finds_more_than_chance(
    every_kind: Callable[..., Case],
) -> None:
    case = every_kind("--regularizer", "smart", "--smart-eps", "1e-2", "--smart-step", "1", *STILL)
    batch = ModelBatch(case.criterion, case.model, case.sample)
    torch.manual_seed(1)
    noise = worst_noise(batch, case.criterion.settings)
    words = case.tokens.ne(case.pad).unsqueeze(-1)
    assert noise.abs().max() <= 1e-2
    assert (noise.abs() * words).max() == pytest.approx(1e-2)
    chance = torch.empty_like(noise).uniform_(-1e-2, 1e-2)
    with torch.no_grad():
        clean, worst = batch.views(2, torch.cat([torch.zeros_like(noise), noise]))
        _, other = batch.views(2, torch.cat([torch.zeros_like(noise), chance]))
    assert (worst.apart_from(clean) > other.apart_from(clean)).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance", "sam --sam-groups 2"])
def test_methods_around_it_equal_the_reference(
    translation: Path, regularizer: tuple[str, ...], method: str
) -> None:
    """With its noise and dropout replayed in every pass."""
    sgd = ("--sam-inner", "sgd", "--lr", "0.05", "--sam-rho", "0.2", "--sam-eta", "1e-3")
    flags = (*regularizer, *sgd, "--sam-method", *method.split(), "--dropout", "0.1")
    if method not in {"sam", "delta_sam"} and "smart" in flags:
        pytest.skip("goes sentence by sentence, or group by group, with noise of its own for each")
    case = Case(translation, SEQUENCES, *flags)
    at = Functional(case.model)
    params = [p.detach().clone() for p in case.model.parameters()]

    def losses(weights: Any) -> Tensor:
        torch.manual_seed(3)  # as the trainer seeds its first update
        at.at(list(weights))
        return own_losses(case.criterion, at, case.sample).losses

    if method == "sam --sam-groups 2":
        numbers = [case.sample["id"].tolist()]
        groups = [rows for (rows,) in dealt(numbers, 2, seed_for(3, 0))]
        expected = reference.per_instance_gradient(losses, params, rho=0.2, groups=groups)
    elif method == "per_instance":
        expected = reference.per_instance_gradient(losses, params, rho=0.2)
    elif method == "sam":
        expected = reference.sam_gradient(losses, params, rho=0.2)
    else:
        # k_proj.bias has no gradient but for rounding: it is covered like any other.
        plain_gradient = reference.plain_gradient(losses, params)
        noise = direction(params, plain_gradient, radius=0.2, seed=seed_for(3, 0))
        expected = reference.delta_sam_gradient(losses, params, noise, rho=0.2, eta=1e-3)
    toys.updates(case.trainer, [[case.sample]])
    assert not hook._runs[case.trainer].needs_loop
    size = case.sample["ntokens"]
    for before, after, wanted in zip(params, case.model.parameters(), expected, strict=True):
        found = (before - after.detach()) / 0.05 * size / 5  # of the mean over sentences
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_smart_goes_sentence_by_sentence_with_per_instance_and_says_so(
    translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = (*REGULARIZERS["smart"], "--sam-method", "per_instance")
    trainer = toys.make_trainer(translation, *SEQUENCES, *flags)
    log = toys.updates(trainer, [toys.batches(trainer)[:1]])
    assert "sentence by sentence: SMART searches for its noise in passes" in caplog.text
    assert math.isfinite(log[0]["sharpness"])
    with pytest.raises(ValueError, match="engine batched: SMART searches for its noise"):
        engine = ("--sam-per-instance-engine", "batched")
        toys.make_trainer(translation, *SEQUENCES, *flags, *engine).optimizer  # noqa: B018


BAD = [
    (("--regularizer", "rdorp"), "did you mean 'rdrop'"),
    (("--regularizer", "rdrop", "--regularizer-weight", "-1"), "--regularizer-weight must be at"),
    (("--regularizer", "smart", "--smart-steps", "0"), "--smart-steps must be greater than 0"),
    (("--regularizer", "smart", "--smart-eps", "0"), "--smart-eps must be greater than 0"),
    (("--r3f-eps", "0.1"), "--r3f-eps is of --regularizer r3f, and --regularizer is none"),
    (("--regularizer", "smart", "--smart-bregman", "1"), "which fairseq keeps with --store-ema"),
    (
        ("--regularizer", "rdrop", "--rdrop-kl-reduction", "sum", "--sam-method", "per_instance"),
        "not independent: with --rdrop-kl-reduction sum the divergence",
    ),
    (
        ("--regularizer", "rdrop", "--rdrop-kl-reduction", "sum", "--sam-groups", "2"),
        "--sam-groups runs parts of a batch by themselves",
    ),
    (
        ("--regularizer", "rdrop", "--rdrop-kl-reduction", "sum", "--sam-ascent-fraction", "0.5"),
        "--sam-ascent-fraction runs parts of a batch by themselves",
    ),
    (("--regularizer", "smart", "--checkpoint-activations"), "differentiates by its noise alone"),
    (("--adaptive-softmax-cutoff", "6,8"), "needs a score for every word"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_what_cannot_be_is_refused_at_start_up(
    translation: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        toys.make_trainer(translation, *SEQUENCES, *flags).optimizer  # noqa: B018


def test_rdrops_sum_is_the_batchs_size_times_its_mean(kind: Callable[..., Case]) -> None:
    flags = ("--regularizer", "rdrop", "--dropout", "0.2", "--regularizer-weight")
    none, mean = (kind(*flags, weight).losses() for weight in ("0", "1"))
    summed = kind(*flags, "1", "--rdrop-kl-reduction", "sum").losses()
    torch.testing.assert_close(summed - none, 5 * (mean - none), rtol=1e-4, atol=1e-4)


def test_a_moving_average_begins_with_the_weights_of_a_checkpoint(
    translation: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "checkpoint.pt")

    def weights(model: Any) -> dict[str, Tensor]:
        return copy.deepcopy(toys.used(model.state_dict()))

    def save(case: Case) -> dict[str, Tensor]:
        case.trainer.optimizer  # noqa: B018  (asking for it builds it)
        case.trainer.consolidate_optimizer()
        begun = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 1}}
        case.trainer.save_checkpoint(path, begun)
        return weights(case.model)

    def load(**how: bool) -> tuple[Case, dict[str, Tensor]]:
        flags = ("--regularizer", "smart", "--smart-bregman", "1", "--store-ema", "--ema-fp32")
        case = Case(translation, SEQUENCES, *flags, *STILL, "--seed", "2")
        case.trainer.load_checkpoint(path, **how)
        return case, weights(case.trainer.ema.get_model())

    pretrained = save(Case(translation, SEQUENCES))
    case, average = load(reset_optimizer=True)
    assert all(torch.equal(average[name], pretrained[name]) for name in pretrained)
    toys.updates(case.trainer, [[case.sample]])
    trained, average = save(case), weights(case.trainer.ema.get_model())
    _, resumed = load()
    assert all(torch.equal(resumed[name], average[name]) for name in average)
    assert any(not torch.equal(trained[name], average[name]) for name in average)


def test_the_proximal_term_pulls_towards_the_moving_average(translation: Path) -> None:
    flags = ("--regularizer", "smart", "--regularizer-weight", "0", "--smart-bregman")
    ema = ("--store-ema", "--ema-fp32", "--max-update", "40", *STILL)
    free, held = (Case(translation, SEQUENCES, *flags, m, *ema) for m in ("0", "3"))
    for case in (free, held):
        case.trainer.optimizer  # noqa: B018  (asking for it builds it)
    torch.testing.assert_close(held.losses(), free.losses())  # they are the same as yet
    for case in (free, held):
        toys.updates(case.trainer, [[case.sample]] * 2)
    average = held.trainer.ema.get_model()
    with torch.no_grad():
        now, before = (
            log_probabilities(held, run(held, held.sample["net_input"]))
            if model is held.model
            else log_probabilities(held, model(**held.sample["net_input"])[0])
            for model in (held.model, average.eval())
        )
    words = held.sample["target"].ne(held.pad)
    term = (((now.exp() - before.exp()) * (now - before)).sum(-1) * words).sum(1)
    assert term.min() > 0
    held.criterion.settings = held.criterion.settings.__class__(bregman=0.0)
    rest = held.losses()
    held.criterion.settings = held.criterion.settings.__class__(bregman=3.0)
    torch.testing.assert_close(held.losses() - rest, 3 * term.to(rest), rtol=1e-4, atol=1e-5)
    # β of the paper: 0.99 in the first tenth of the updates, 0.999 afterwards.
    decays = []
    for updates in (3, 4):
        held.trainer.set_num_updates(updates)
        held.losses()
        decays.append(held.trainer.cfg.ema.ema_decay)
    assert decays == [0.99, 0.999]


def test_rdrop_of_sequences_is_fairseqs_on_a_training_batch(translation: Path) -> None:
    module = pytest.importorskip(
        "fairseq.criterions.label_smoothed_cross_entropy_with_rdrop", reason="since 0.12.3"
    )
    case = Case(translation, SEQUENCES, "--regularizer", "rdrop", "--regularizer-weight", "0.7")
    case.model.float()
    theirs = module.RdropLabelSmoothedCrossEntropyCriterion(
        case.trainer.task, sentence_avg=False, label_smoothing=0.1, rdrop_alpha=0.7
    )
    torch.manual_seed(7)
    sample = copy.deepcopy(case.sample)  # it doubles the batch in place
    loss, size, log = theirs(case.model, sample)
    ours = case.losses().sum()
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-4)
    assert size == case.sample["ntokens"]
    torch.manual_seed(7)
    own = own_losses(case.criterion, case.model, case.sample).logging_output
    assert 2 * float(own["loss"]) == pytest.approx(
        float(loss) - 0.7 * float(log["rdrop_kl_loss"]), rel=1e-5
    )
    assert math.isfinite(float(own["regularizer"]))


def test_noise_that_rounding_takes_is_warned_of(
    translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = (*SEQUENCES, "--regularizer", "r3f")
    toys.make_trainer(translation, *flags).optimizer  # noqa: B018
    assert "rounded away" not in caplog.text
    toys.make_trainer(translation, *flags, dtype=torch.bfloat16).optimizer  # noqa: B018
    assert "noise of 1e-05 on half-precision embeddings is mostly rounded away" in caplog.text


SHARES = (range(3), range(3, 8))
WORKERS = [(name, wrapper) for name in REGULARIZERS for wrapper in ("legacy_ddp", "pytorch_ddp")]


def share_of(data: Path, name: str, share: range, *more: str, ddp: bool = False) -> list[Tensor]:
    """The gradient of a worker's share, summed over all workers there are."""
    sgd = ("--sam-inner", "sgd", "--lr", "0.05", "--sam-method", "sam", "--sam-scope", "micro")
    trainer = toys.make_trainer(
        data, *SEQUENCES, *REGULARIZERS[name], *sgd, *STILL, *more, dtype=torch.float64
    )
    if ddp:
        model = DistributedDataParallel(
            trainer.get_model(),
            process_group=trainer.data_parallel_process_group,
            # fairseq 0.12.2 has parameters that training never uses, and needs the flag.
            find_unused_parameters=fairseq.__version__ == "0.12.2",
        )
        trainer._wrapped_model = ModuleProxyWrapper(model)
    before = [p.detach().clone() for p in trainer.get_model().parameters()]
    sample = toys.sentences(trainer, share)
    with metrics.aggregate(new_root=True) as seen:
        trainer.train_step([sample])
    size = float(seen["wpb"].avg)  # target tokens of all workers
    after = trainer.get_model().parameters()
    return [(b - p.detach()) / 0.05 * size for b, p in zip(before, after, strict=True)]


def in_workers(rank: int, count: int, port: int, data: Path) -> dict[Any, list[Tensor]]:
    init = toys.join_workers(data, SEQUENCES, rank, count, port)
    return {
        (name, wrapper): share_of(data, name, SHARES[rank], *init, ddp=wrapper == "pytorch_ddp")
        for name, wrapper in WORKERS
    }


@pytest.mark.multiprocess
@pytest.mark.usefixtures("float64")
def test_workers_add_up_what_each_finds(translation: Path, tmp_path: Path) -> None:
    """Every worker draws the same noise, so each share is what one process finds in it."""
    workers = run_workers(in_workers, 2, tmp_path, translation)
    for name, wrapper in WORKERS:
        shares = [share_of(translation, name, share) for share in SHARES]
        for worker in workers:
            for got, *parts in zip(worker[name, wrapper], *shares, strict=True):
                torch.testing.assert_close(got, sum(parts), rtol=1e-8, atol=1e-8)


def test_a_model_without_embeddings_to_shift_is_refused(translation: Path) -> None:
    flags = [*SEQUENCES, "--arch", "lstm", "--regularizer", "r3f"]
    wrong = [flag for flag in flags if not flag.startswith("--share")]
    with pytest.raises(ValueError, match="LSTMModel has LSTMEncoder; use a model such as"):
        toys.make_trainer(translation, *without_sizes(wrong)).optimizer  # noqa: B018
    toys.make_trainer(translation, *without_sizes(wrong), "--regularizer", "rdrop")
    with pytest.raises(ValueError, match="Linear has none; use a model such as"):
        encoder_of(torch.nn.Linear(1, 1))


def without_sizes(flags: list[str]) -> list[str]:
    """Leave out the sizes of a transformer."""
    start = flags.index(toys.TINY[0])
    return flags[:start] + flags[start + len(toys.TINY) :]
