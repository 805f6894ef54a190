"""Mirror-BERT's task and criterion: views, batches, and a perturbation of the second view alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.distributed.module_proxy_wrapper import ModuleProxyWrapper
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.core.noise import gaussian_direction, seed_for
from deltasam_fairseq.core.perturb import perturbed
from deltasam_fairseq.data.views import mask_span
from deltasam_fairseq.data.vocabulary import write_bert_dictionary
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.criterions.infonce import pooled
from deltasam_fairseq.fairseq_plugin.one_side import unperturbed
from deltasam_fairseq.fairseq_plugin.support import check_run
from deltasam_fairseq.objectives.contrastive import info_nce
from tests.fairseq_plugin.twins import Functional
from tests.support import fairseq_toys as toys
from tests.support.workers import run_workers

WORDS = "cat dog bird tree house river stone light water green small large quick brown".split()
MIRROR = (
    "--task deltasam_mirror --arch deltasam_bert_base --max-positions 64 --criterion "
    "deltasam_infonce --pooling mean --temperature 0.2 --find-unused-parameters"
).split() + toys.ENCODER
SGD = ("--sam-inner", "sgd", "--lr", "0.5", "--sam-rho", "0.3")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as deltasam prepare mirror makes it, with a small vocabulary."""
    folder = tmp_path_factory.mktemp("mirror")
    draw = random.Random(1)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(30)]
    for split in ("train", "valid"):  # fairseq 0.12.2 loads the latter unasked
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    pieces += [f"##{letter}" for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    write_bert_dictionary(folder / "vocab.txt", folder / "dict.txt")
    cutting = {"lowercase": True, "strip_accents": True, "split_chinese": True}
    (folder / "cutting.json").write_text(json.dumps(cutting))
    return folder


class Draw:
    """Draws that are known beforehand."""

    def __init__(self, start: int) -> None:
        self.start = start

    def integers(self, high: int, /) -> int:
        assert self.start < high
        return self.start


LONG = "0123456789 abcdefghij ABCDEFGHI"


@pytest.mark.parametrize(
    ("sentence", "start", "expected"),
    [
        (LONG, 0, " [MASK] 56789 abcdefghij ABCDEFGHI"),
        (LONG, 11, "0123456789  [MASK] fghij ABCDEFGHI"),
        (LONG, 25, "0123456789 abcdefghij ABC [MASK] I"),
        # The span that was drawn occurs before: the mask stands at its first place.
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaabb", 20, " [MASK] aaaaaaaaaaaaaaaaaaaaaaaaabb"),
        # Characters are code points: one outside the Basic Multilingual Plane counts once.
        ("😀" * 30, 3, " [MASK] " + "😀" * 25),
        ("x" * 29, 0, "x" * 29),
    ],
)
def test_spans_are_hidden_as_in_mirror_bert(sentence: str, start: int, expected: str) -> None:
    assert mask_span(sentence, Draw(start)) == expected


def test_no_span_is_hidden_if_none_is_wanted() -> None:
    assert mask_span(LONG, Draw(0), characters=0) == LONG


def test_a_batch_has_all_first_views_and_then_all_second_ones(mirror: Path) -> None:
    task = toys.make_trainer(mirror, *MIRROR).task
    dataset = task.dataset("train")
    sentences = [dataset[i]["views"] for i in range(4)]
    sample = dataset.collater([dataset[i] for i in range(4)])
    tokens = sample["net_input"]["src_tokens"]
    lines = [view[side] for side in (0, 1) for view in sentences]
    for row, encoded in zip(tokens, task.encode(lines), strict=True):
        assert row[: len(encoded)].tolist() == encoded.tolist()
        assert row[len(encoded) :].eq(task.dictionary.pad()).all()
    long = [i for i, (first, _) in enumerate(sentences) if len(first) >= 30]
    assert long
    mask = task.dictionary.index("<mask>")
    assert [i for i in range(4) if tokens[4 + i].eq(mask).any()] == long
    assert not tokens[:4].eq(mask).any()
    assert not tokens.eq(task.dictionary.unk()).any()


def test_order_and_spans_depend_on_seed_and_epoch_alone(mirror: Path) -> None:
    def epoch(number: int, seed: str) -> list[Any]:
        dataset = toys.make_trainer(mirror, *MIRROR, "--seed", seed).task.dataset("train")
        dataset.set_epoch(number)
        return [dataset[int(i)]["views"] for i in dataset.ordered_indices()]

    assert epoch(1, "1") == epoch(1, "1")
    assert epoch(1, "1") != epoch(2, "1")
    assert epoch(1, "1") != epoch(1, "2")
    assert sorted(first for first, _ in epoch(1, "1")) == sorted(f for f, _ in epoch(2, "2"))


def test_the_last_batch_of_an_epoch_is_dropped(mirror: Path) -> None:
    trainer = toys.make_trainer(mirror, *MIRROR)
    assert [batch["nsentences"] for batch in toys.batches(trainer)] == [8, 8, 8]


def test_every_worker_has_a_batch(mirror: Path) -> None:
    task = toys.make_trainer(mirror, *MIRROR).task
    with pytest.raises(ValueError, match="3 batches for 4 workers: .* smaller --batch-size"):
        task.get_batch_iterator(task.dataset("train"), max_sentences=8, num_shards=4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch-size", "31"), "--batch-size 31, but there are 30 sentences"),
        (("--max-view-tokens", "2"), "--max-view-tokens must be at least 3"),
        (("--mask-span", "-1"), "--mask-span must be at least 0"),
        (("--temperature", "0"), "--temperature must be greater than 0"),
        (("--noise", "-0.1"), "--noise must be at least 0"),
        (("--view-chunks", "0"), "--view-chunks must be at least 1"),
        (("--view-chunks", "2", "--pooling", "mean_with_pads"), "depend on the padding"),
        (
            ("--sam-method", "per_instance"),
            "negatives, and of a sentence by itself the loss is zero",
        ),
        (("--sam-groups", "2"), "--sam-groups runs parts of a batch by themselves"),
        (("--sam-ascent-fraction", "0.5"), "--sam-ascent-fraction runs parts of a batch"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_update(
    mirror: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises((ValueError, SystemExit), match=message):
        toys.train(mirror, *MIRROR, *flags)


@pytest.mark.parametrize("estimator", ["exact", "gibbs", "inverse_norm"])
def test_gradients_sentence_by_sentence_are_refused_on_several_workers(
    mirror: Path, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--sam-method", "delta_sam", "--sam-estimator", estimator)
    trainer = toys.make_trainer(mirror, *MIRROR, *flags)
    settings = Sharpness.from_config(trainer.cfg.optimizer)
    check_run(trainer, settings)
    monkeypatch.setattr(type(trainer), "data_parallel_world_size", 2)
    with pytest.raises(ValueError, match="a gradient reaches the sentences of all of them"):
        check_run(trainer, settings)


def test_first_views_are_not_recomputed_at_perturbed_weights(mirror: Path) -> None:
    trainer = toys.make_trainer(mirror, *MIRROR)
    for layer in trainer.get_model().encoder.sentence_encoder.layers:
        checkpoint_wrapper(layer)
    with pytest.raises(ValueError, match="the first views' weights for the forward pass"):
        trainer.optimizer  # noqa: B018  (asking for it builds it)


def test_pooling_ignores_padding_but_for_the_one_that_says_so() -> None:
    torch.manual_seed(0)
    features, words = torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    words[1, 3:] = False
    wider = torch.cat([features, torch.randn(2, 2, 3)], dim=1)
    more = torch.cat([words, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    for pooling in ("cls", "mean"):
        torch.testing.assert_close(
            pooled(features, words, pooling), pooled(wider, more, pooling), rtol=0, atol=1e-6
        )
    torch.testing.assert_close(pooled(features, words, "mean")[1], features[1, :3].mean(0))
    torch.testing.assert_close(pooled(wider, more, "mean_with_pads"), wider.mean(1))


class Twin:
    """The loss of both views as a function of the weights of each, in float64."""

    def __init__(self, trainer: Any, sample: Any) -> None:
        self.model, self.trainer = trainer.get_model(), trainer
        self.weights = [p.detach().clone().requires_grad_() for p in self.model.parameters()]
        self.tokens = sample["net_input"]["src_tokens"]
        self.at = Functional(self.model)

    def losses(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """The losses with the first view at one set of weights, the second at another."""
        torch.manual_seed(self.trainer.cfg.common.seed)
        count = len(self.tokens) // 2
        views = []
        for weights, tokens in ((first, self.tokens[:count]), (second, self.tokens[count:])):
            self.at.at(weights)
            features, _ = self.at(src_tokens=tokens, features_only=True)
            views.append(pooled(features, tokens.ne(1), "mean"))
        return info_nce(views[0], views[1], temperature=0.2)

    def gradient(self, value: Tensor, weights: list[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(value, weights, allow_unused=True)
        return [
            torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)
        ]

    def step(self, shares: Tensor, rho: float) -> list[Tensor]:
        """The gradient with the second view at w + eps; eps from the second view alone."""
        second = [w.detach().clone().requires_grad_() for w in self.weights]
        constant = [w.detach() for w in self.weights]
        v = self.gradient((shares * self.losses(constant, second)).sum(), second)
        norm = torch.stack([d.norm() for d in v]).norm()
        moved = [(w + rho * d / norm).requires_grad_() for w, d in zip(constant, v, strict=True)]
        both = self.gradient(self.losses(self.weights, moved).sum(), [*self.weights, *moved])
        return [a + b for a, b in zip(both[: len(moved)], both[len(moved) :], strict=True)]


def change(trainer: Any, sample: Any) -> list[Tensor]:
    """The gradient of one update by SGD."""
    before = [p.detach().clone() for p in trainer.get_model().parameters()]
    toys.updates(trainer, [[sample]])
    lr = trainer.get_lr()
    return [
        (b - p.detach()) / lr * sample["nsentences"]
        for b, p in zip(before, trainer.get_model().parameters(), strict=True)
    ]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_the_second_view_alone_is_perturbed(mirror: Path, method: str) -> None:
    flags = (*MIRROR, *SGD, "--sam-method", method, "--sam-eta", "1e-3")
    trainer = toys.make_trainer(mirror, *flags, dtype=torch.float64)
    sample = toys.batches(trainer)[0]
    twin = Twin(trainer, sample)

    shares = torch.ones(8, dtype=torch.float64)
    if method == "delta_sam":
        clean = [w.detach() for w in twin.weights]
        reached = twin.gradient(twin.losses(clean, twin.weights).sum(), twin.weights)
        covered = [w for w, g in zip(clean, reached, strict=True) if g.any()]
        drawn = iter(gaussian_direction(covered, radius=0.3, seed=seed_for(3, 0)))
        r = [next(drawn) if g.any() else torch.zeros_like(g) for g in reached]
        sides = ([w + s * d for w, d in zip(clean, r, strict=True)] for s in (1, -1, 0))
        up, down, here = (twin.losses(clean, side) for side in sides)
        shares = (up + down - 2 * here).abs() / (up - down).abs().clamp(min=1e-3)
        assert shares.max() > 2 * shares.min()
    for got, wanted in zip(change(trainer, sample), twin.step(shares, 0.3), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("side", ["second", "both"])
@pytest.mark.parametrize(
    "method",
    [
        "none --noise 0.5",
        "sam --noise 0.5",
        "delta_sam --sam-eta 1e-3",
        "none --freelb-steps 2 --freelb-init 0.5 --freelb-lr 0.5",
    ],
)
def test_views_in_chunks_are_those_of_one_pass(mirror: Path, method: str, side: str) -> None:
    still = ("--dropout", "0", "--attention-dropout", "0", "--perturb-side", side)
    flags = (*MIRROR, *SGD, *still, "--sam-method", *method.split())
    changes, widths = [], []
    for chunks in ("1", "3", "50"):
        trainer = toys.make_trainer(mirror, *flags, "--view-chunks", chunks, dtype=torch.float64)
        trainer.get_model().encoder.register_forward_hook(
            lambda module, inputs, output: widths.append(output[0].shape[1])
        )
        changes.append(change(trainer, toys.batches(trainer)[0]))
    assert len(set(widths)) > 2
    for got in changes[1:]:
        for one, wanted in zip(got, changes[0], strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-7, atol=1e-9)


def test_unperturbed_weights_are_put_back_and_get_the_gradient() -> None:
    shared = torch.nn.Linear(3, 3, bias=False)
    model = torch.nn.Sequential(shared, torch.nn.Tanh(), shared)
    before = shared.weight.detach().clone()
    inputs = torch.randn(4, 3)
    model(inputs).sum().backward()
    plain, shared.weight.grad = shared.weight.grad, None
    with perturbed([shared.weight], [torch.ones(3, 3)]):
        moved = shared.weight.detach().clone()
        with pytest.raises(KeyError), unperturbed(model):
            assert torch.equal(shared.weight, before)
            raise KeyError
        assert torch.equal(shared.weight, moved)
        with unperturbed(model):
            output = model(inputs)
        output.sum().backward()
        torch.testing.assert_close(shared.weight.grad, plain)
    with unperturbed(model):
        assert isinstance(shared.weight, torch.nn.Parameter)


RUNS = [
    (method, side, wrapper)
    for wrapper in ("legacy_ddp", "pytorch_ddp")
    for method in ("none", "sam", "delta_sam")
    for side in ("second", "both")
]


def worker_flags(method: str, side: str) -> tuple[str, ...]:
    still = ("--dropout", "0", "--attention-dropout", "0", "--sam-eta", "0.01")
    chunks = "2" if method == "sam" else "1"
    return (
        *(*MIRROR, *SGD, *still, "--sam-method", method),
        *("--perturb-side", side, "--view-chunks", chunks),
    )


def in_workers(rank: int, count: int, port: int, data: Path) -> dict[Any, Any]:
    """One update of eight sentences, of which each of two workers has its share."""
    init = toys.join_workers(data, MIRROR, rank, count, port)
    found = {}
    for method, side, wrapper in RUNS:
        flags = worker_flags(method, side)
        trainer = toys.make_trainer(data, *flags, *init, dtype=torch.float64)
        if wrapper == "pytorch_ddp":
            model = DistributedDataParallel(
                trainer.get_model(),
                process_group=trainer.data_parallel_process_group,
                broadcast_buffers=False,
                find_unused_parameters=True,
            )
            trainer._wrapped_model = ModuleProxyWrapper(model)
        toys.updates(trainer, [[toys.sentences(trainer, (range(3), range(3, 8))[rank])]])
        found[method, side, wrapper] = toys.parameters(trainer)
    return found


@pytest.mark.multiprocess
@pytest.mark.usefixtures("float64")
def test_two_workers_equal_one_process(mirror: Path, tmp_path: Path) -> None:
    workers = run_workers(in_workers, 2, tmp_path, mirror)
    for run in RUNS:
        trainer = toys.make_trainer(mirror, *worker_flags(*run[:2]), dtype=torch.float64)
        toys.updates(trainer, [[toys.sentences(trainer, range(8))]])
        for name, value in toys.parameters(trainer).items():
            for worker in workers:
                torch.testing.assert_close(
                    worker[run][name], value, rtol=1e-7, atol=1e-9, msg=f"{run} {name}"
                )


def test_noise_moves_the_second_view_alone_and_is_replayed(mirror: Path) -> None:
    def run(*flags: str) -> tuple[list[dict[str, float]], list[Tensor]]:
        still = ("--dropout", "0", "--attention-dropout", "0")
        trainer = toys.make_trainer(mirror, *MIRROR, *SGD, *still, *flags)
        seen: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            seen.append(output[0].detach().clone())

        trainer.get_model().encoder.register_forward_hook(keep)
        logs = toys.updates(trainer, [[toys.batches(trainer)[0]]])
        return logs, seen

    _, plain = run("--sam-method", "none")
    logs, noised = run("--sam-method", "none", "--noise", "0.5")
    assert torch.equal(plain[0], noised[0])
    assert not torch.allclose(plain[1], noised[1])
    # The pass at w of SAM sees the noise of the plain pass: the logged loss is the same.
    again, passes = run("--sam-method", "sam", "--noise", "0.5")
    assert again[0]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-6)
    assert torch.equal(passes[1], noised[1])
    assert not torch.allclose(passes[3], noised[1])
    # Of both views, both are moved.
    _, both = run("--sam-method", "none", "--noise", "0.5", "--perturb-side", "both")
    count = len(plain[0])
    assert not torch.allclose(both[0][:count], plain[0], atol=1e-2)


def test_a_resumed_run_goes_on_as_if_nothing_had_been(mirror: Path, tmp_path: Path) -> None:
    flags = (*MIRROR, *SGD, "--sam-method", "delta_sam", "--sam-eta", "1", "--noise", "0.1")
    folder = ("--save-dir", str(tmp_path), "--no-epoch-checkpoints")
    whole = toys.train(mirror, *flags, "--max-update", "6")
    toys.train(
        mirror, *flags, *folder, "--max-update", "4", "--save-interval-updates", "4", save=True
    )
    rest = toys.train(mirror, *flags, *folder, "--max-update", "6", save=True)

    def losses(log: list[dict[str, Any]]) -> list[Any]:
        return [line["loss"] for line in log if "loss" in line]

    assert losses(rest)[-2:] == losses(whole)[-2:]


def test_freelb_moves_the_second_view_alone(mirror: Path) -> None:
    still = ("--dropout", "0", "--attention-dropout", "0")
    freelb = ("--freelb-steps", "2", "--freelb-init", "0.5", "--freelb-lr", "0.5")
    ends = {}
    for name, flags in {
        "second": (),
        "both": ("--perturb-side", "both"),
        "sam": ("--sam-method", "sam"),
    }.items():
        method = () if "--sam-method" in flags else ("--sam-method", "none")
        trainer = toys.make_trainer(mirror, *MIRROR, *SGD, *still, *freelb, *method, *flags)
        seen: list[Tensor] = []
        trainer.get_model().encoder.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output[0].detach())
        )
        logs = toys.updates(trainer, [[toys.batches(trainer)[0]]])
        ends[name] = seen
        assert logs[0]["freelb_delta_norm"] > 0
    # Passes alternate between the views: the first one's are all alike.
    first, second = ends["second"][::2], ends["second"][1::2]
    assert len(first) == 2
    assert torch.equal(first[0], first[1])
    assert not torch.allclose(second[0], second[1])
    assert not torch.allclose(ends["both"][0][:8], first[0], atol=1e-3)
    assert len(ends["sam"]) == 8
    for output in ends["sam"][::2]:
        torch.testing.assert_close(output, first[0])
