"""How many sentences share a perturbation, which of them it is found on, and when."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.core.groups import dealt
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from tests.fairseq_plugin.twins import Functional, direction
from tests.support import fairseq_toys as toys
from tests.support.workers import run_workers

SGD = ("--sam-inner", "sgd", "--lr", "0.05", "--sam-rho", "0.3", "--sam-eta", "1e-3")
SEED = 3  # of toys.COMMON


def trainer_of(data: Path, *flags: str) -> Any:
    return toys.make_trainer(data, *toys.PRECISE, *SGD, *flags, dtype=torch.float64)


def change(data: Path, parts: list[range], *flags: str, updates: int = 1) -> list[Tensor]:
    """Run updates whose micro-batches are these sentences; return the gradient of their sum."""
    trainer = trainer_of(data, *flags)
    before = [p.detach().clone() for p in trainer.get_model().parameters()]
    group = [toys.sentences(trainer, part) for part in parts]
    for _ in range(updates):
        toys.updates(trainer, [group])
    size = sum(sample["ntokens"] for sample in group)
    return [
        (b - p.detach()) / 0.05 * size
        for b, p in zip(before, trainer.get_model().parameters(), strict=True)
    ]


def close(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert max(w.abs().max() for w in wanted) > 0.1
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


class Twin:
    """Groups and shares by hand, in one graph per group."""

    def __init__(self, data: Path, sentences: range) -> None:
        self.trainer = trainer_of(data)
        self.at = Functional(self.trainer.get_model())
        self.weights = [
            p.detach().clone().requires_grad_() for p in self.trainer.get_model().parameters()
        ]
        self.sample = toys.sentences(self.trainer, sentences)

    def losses(self, weights: list[Tensor]) -> Tensor:
        self.at.at(weights)
        tokens, _, _ = self.trainer.get_criterion()(self.at, self.sample, reduce=False)
        return tokens.view(self.sample["target"].shape).sum(1)

    def gradient(self, rows: list[int], weights: list[Tensor], shares: Tensor | None = None) -> Any:
        losses = self.losses(weights)[rows]
        value = (losses if shares is None else shares * losses).sum()
        return torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)

    def step(self, rows: list[int], ascent: list[int], shares: Tensor | None = None) -> Any:
        v = self.gradient(ascent, self.weights, shares)
        norm = torch.stack([d.norm() for d in v]).norm()
        moved = [
            (w.detach() + 0.3 * d / norm).requires_grad_()
            for w, d in zip(self.weights, v, strict=True)
        ]
        return self.gradient(rows, moved)

    def bend(self, rows: list[int], seed: int) -> Tensor:
        """Eq. 5's weights of some sentences."""
        clean = [w.detach() for w in self.weights]
        used = self.gradient(list(range(len(self.sample["id"]))), self.weights)
        r = direction(clean, used, radius=0.3, seed=seed)
        up, down, here = (
            self.losses([w + s * d for w, d in zip(clean, r, strict=True)])[rows]
            for s in (1, -1, 0)
        )
        return (up + down - 2 * here).abs() / (up - down).abs().clamp(min=1e-3)


def summed(gradients: list[Any]) -> list[Tensor]:
    return [torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True)]


def rows_of(groups: list[list[list[int]]]) -> list[list[int]]:
    return [rows for ((rows),) in groups]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("by", ["random", "loss"])
@pytest.mark.parametrize(
    ("method", "engine"), [("sam", "batched"), ("sam", "loop"), ("delta_sam", "auto")]
)
def test_each_group_has_its_own_perturbation(
    translation: Path, method: str, engine: str, by: str
) -> None:
    twin, seed = Twin(translation, range(8)), seed_for(SEED, 0)
    losses = twin.losses(twin.weights).detach() if by == "loss" else None
    groups = rows_of(dealt([twin.sample["id"].tolist()], 3, seed, losses))
    assert sorted(map(len, groups)) == [2, 3, 3]
    shares = [twin.bend(g, seed) if method == "delta_sam" else None for g in groups]
    wanted = summed([twin.step(g, g, s) for g, s in zip(groups, shares, strict=True)])
    flags = ("--sam-method", method, "--sam-groups", "3", "--sam-group-by", by)
    close(change(translation, [range(8)], *flags, "--sam-per-instance-engine", engine), wanted)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("parts", [[range(5)], [range(5), range(5, 8)]])
def test_groups_at_once_log_what_the_loop_logs(prediction: Path, parts: list[range]) -> None:
    """In the passes that SAM takes, also where they are dealt out by loss."""
    logs, passes = {}, {}
    for engine, by in (("loop", "random"), ("batched", "random"), ("batched", "loss")):
        trainer = toys.make_trainer(
            prediction,
            *(*toys.PREDICTION, *SGD, "--sam-method", "sam", "--sam-groups", "2"),
            *("--dropout", "0", "--attention-dropout", "0", "--update-freq", str(len(parts))),
            *("--sam-scope", "micro", "--sam-per-instance-engine", engine, "--sam-group-by", by),
            dtype=torch.float64,
        )
        seen: list[int] = []
        trainer.get_model().encoder.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(1)
        )
        group = [toys.sentences(trainer, part) for part in parts]
        toys.updates(trainer, [group])  # the first update checks that sentences add up
        seen.clear()
        (log,) = toys.updates(trainer, [group])
        logs[engine, by], passes[engine, by] = log, len(seen)
    loop, batched = logs["loop", "random"], logs["batched", "random"]
    for name in ("loss", "sam_loss", "sharpness", "gnorm", "bsz", "accuracy", "sam_fallback"):
        assert batched[name] == pytest.approx(loop[name], rel=1e-3, abs=1e-9), name
    # Per unit of sample size, of which groups at once have the same each.
    assert batched["sam_gnorm"] == pytest.approx(loop["sam_gnorm"], rel=0.3)
    assert batched["sam_inorm"] > 0
    assert passes["batched", "random"] == passes["batched", "loss"] == 2 * len(parts)
    assert passes["loop", "random"] == 4 * len(parts)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norms", ["layer_norms", "all"])
def test_groups_at_once_measure_every_sentences_norm_at_w(translation: Path, norms: str) -> None:
    found = []
    for method in ("none", "sam --sam-groups 2 --sam-per-instance-engine batched"):
        flags = ("--sam-method", *method.split(), "--sam-norms", norms)
        trainer = trainer_of(translation, *flags)
        found += toys.updates(trainer, [[toys.sentences(trainer, range(5))]])
    for name in ("sam_inorm", "sam_inorm_p90", "sam_inorm_max"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-3)
        assert found[0][name] > 0


def test_what_the_engine_refuses_goes_group_by_group(
    translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--sam-method", "sam", "--sam-groups", "2", "--sam-adaptive")
    with caplog.at_level(logging.WARNING):
        by_itself = change(translation, [range(8)], *flags, updates=2)
    (said,) = [r.message for r in caplog.records if "group by group" in r.message]
    assert "sam goes group by group: adaptive neighbourhoods" in said
    loop = change(translation, [range(8)], *flags, "--sam-per-instance-engine", "loop", updates=2)
    close(by_itself, loop)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["sam", "delta_sam"])
@pytest.mark.parametrize("parts", [[range(4), range(4, 8)], [range(1), range(1, 6), range(6, 8)]])
def test_how_an_update_is_split_is_no_matter(
    translation: Path, method: str, parts: list[range]
) -> None:
    flags = ("--sam-method", method, "--sam-groups", "3")
    whole = change(translation, [range(8)], *flags)
    close(change(translation, parts, *flags, "--update-freq", str(len(parts))), whole)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("scope", "parts"), [("update", [range(8)]), ("update", [range(5), range(5, 8)]),
                         ("micro", [range(5), range(5, 8)])]
)  # fmt: skip
@pytest.mark.parametrize("groups", ["8", "99"])
def test_as_many_groups_as_sentences_are_per_instance(
    translation: Path, scope: str, parts: list[range], groups: str
) -> None:
    freq = ("--update-freq", str(len(parts)))
    exact = change(translation, parts, "--sam-method", "per_instance", *freq)
    flags = ("--sam-method", "sam", "--sam-scope", scope, "--sam-groups", groups, *freq)
    close(change(translation, parts, *flags), exact)


@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_what_is_asked_for_one_whole_is_the_usual(translation: Path, method: str) -> None:
    """Bit for bit, with dropout and two micro-batches."""
    flags = ("--dropout", "0.1", "--sam-method", method, "--update-freq", "2")
    parts = [range(4), range(4, 8)]
    usual = change(translation, parts, *flags, updates=2)
    whole = ("--sam-groups", "1", "--sam-ascent-fraction", "1", "--sam-tail", "1")
    for a, b in zip(change(translation, parts, *flags, *whole, updates=2), usual, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("groups", [1, 2])
def test_a_share_of_the_sentences_gives_the_perturbation(translation: Path, groups: int) -> None:
    twin, seed = Twin(translation, range(8)), seed_for(SEED, 0)
    parts = (
        rows_of(dealt([twin.sample["id"].tolist()], groups, seed))
        if groups > 1
        else [list(range(8))]
    )
    gradients = []
    for number, rows in enumerate(parts):
        draw = torch.Generator().manual_seed(seed + number)
        chosen = torch.randperm(len(rows), generator=draw)[: -(-3 * len(rows) // 10)]
        gradients.append(twin.step(rows, [rows[i] for i in chosen]))
    flags = ("--sam-method", "sam", "--sam-ascent-fraction", "0.3", "--sam-groups", str(groups))
    close(change(translation, [range(8)], *flags), summed(gradients))


@pytest.mark.usefixtures("float64")
def test_at_least_one_sentence_gives_it(translation: Path) -> None:
    fraction = ("--sam-method", "delta_sam", "--sam-ascent-fraction", "0.001")
    log = toys.updates(trainer := trainer_of(translation, *fraction), [[toys.batches(trainer)[0]]])
    assert log[0]["sam_ess"] == pytest.approx(1)


def sharp(data: Path, *flags: str, save: bool = False) -> set[int]:
    """Which updates of a run were perturbed."""
    log = toys.train(data, *toys.TRANSLATION, "--max-epoch", "9", *flags, save=save)
    return {int(line["num_updates"]) for line in log if "sam_loss" in line}


def test_the_tail_alone_is_perturbed_also_after_a_restart(
    translation: Path, tmp_path: Path
) -> None:
    epoch = len(toys.batches(trainer_of(translation)))
    end, tail = str(2 * epoch), set(range(epoch // 2 + 1, 2 * epoch + 1))
    flags = ("--sam-method", "sam", "--sam-tail", str((2 * epoch - epoch // 2) / (2 * epoch)))
    assert sharp(translation, *flags, "--max-update", end) == tail
    folder = ("--save-dir", str(tmp_path), "--no-epoch-checkpoints")
    decay = ("--lr-scheduler", "polynomial_decay", "--total-num-update", end)
    first = sharp(translation, *flags, *decay, *folder, "--max-epoch", "1", save=True)
    rest = sharp(translation, *flags, *decay, *folder, "--max-epoch", "2", save=True)
    assert min(first) == min(tail)
    assert min(rest) > epoch
    assert first | rest == tail


def test_a_tail_of_a_rate_that_stays_is_warned_of(
    translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_of(translation, "--sam-tail", "0.5", "--max-update", "4").optimizer  # noqa: B018
    assert "--sam-tail perturbs while the learning rate falls" in caplog.text


@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        (("--sam-group-by", "loss"), "--sam-groups"),
        (("--sam-gibbs-temperature", "2"), "--sam-method delta_sam --sam-estimator gibbs"),
    ],
)
def test_a_flag_without_effect_is_warned_of(
    translation: Path, flags: tuple[str, str], needs: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_of(translation, "--sam-method", "sam", *flags).optimizer  # noqa: B018
    assert f"{flags[0]} does nothing without {needs}" in caplog.text


def test_the_shortest_tail_is_one_update(translation: Path) -> None:
    settings = Sharpness.from_config(trainer_of(translation).cfg.optimizer)
    wanted = {1e-9: 99, 0.01: 99, 0.011: 98, 0.07: 93, 1.0: 0}
    assert {tail: replace(settings, tail=tail).until(100).start_update for tail in wanted} == wanted


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sam-groups", "0"), "--sam-groups must be greater than 0"),
        (("--sam-ascent-fraction", "1.5"), "--sam-ascent-fraction is a share, at most 1"),
        (("--sam-ascent-fraction", "0"), "--sam-ascent-fraction must be greater than 0"),
        (("--sam-tail", "0.5"), "nothing says how many there are; give --max-update"),
        (("--sam-tail", "0.5", "--max-update", "4", "--sam-start-update", "2"), "give one"),
        (("--sam-groups", "2", "--sam-method", "per_instance"), "a perturbation of its own"),
        (
            ("--sam-groups", "2", "--sam-adaptive", "--sam-per-instance-engine", "batched"),
            "adaptive neighbourhoods have no batched",
        ),
        (("--sam-ascent-fraction", "0.5", "--sam-method", "per_instance"), "of its own"),
    ],
)
def test_what_makes_no_sense_is_refused(
    translation: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(translation, "--sam-method", "sam", *flags).optimizer  # noqa: B018


def in_workers(rank: int, count: int, port: int, data: Path) -> list[Tensor]:
    init = toys.join_workers(data, toys.PRECISE, rank, count, port)
    trainer = trainer_of(data, "--sam-method", "sam", "--sam-groups", "2", *init)
    before = [p.detach().clone() for p in trainer.get_model().parameters()]
    toys.updates(trainer, [[toys.sentences(trainer, (range(3), range(3, 8))[rank])]])
    after = trainer.get_model().parameters()
    return [(b - p.detach()) / 0.05 for b, p in zip(before, after, strict=True)]


@pytest.mark.multiprocess
@pytest.mark.usefixtures("float64")
def test_each_worker_has_groups_of_its_own(translation: Path, tmp_path: Path) -> None:
    workers = run_workers(in_workers, 2, tmp_path, translation)
    flags = ("--sam-method", "sam", "--sam-groups", "2")
    shares = [change(translation, [part], *flags) for part in (range(3), range(3, 8))]
    twin = Twin(translation, range(8))
    size = twin.sample["ntokens"]
    for worker in workers:
        close([g * size for g in worker], summed(shares))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("groups", ["1", "2"])
def test_a_share_for_the_ascent_logs_the_counts_of_all_sentences(
    translation: Path, scope: str, groups: str
) -> None:
    logs = []
    for fraction in ("1", "0.5"):
        flags = ("--sam-scope", scope, "--sam-groups", groups, "--sam-ascent-fraction", fraction)
        trainer = trainer_of(translation, "--sam-method", "sam", *flags)
        logs += toys.updates(trainer, [toys.batches(trainer)[:1]])
    for name in ("wpb", "bsz"):
        assert logs[1][name] == logs[0][name]
    # At w there are losses of a share alone, so that the difference would be of other sentences.
    assert "sharpness" in logs[0]
    assert "sharpness" not in logs[1]
