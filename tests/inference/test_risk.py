"""The adversarial risk: its slow twin, its limits, weights put back, and both engines alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("fairseq")

from deltasam_fairseq.inference import risk  # noqa: E402
from deltasam_fairseq.inference.checkpoint import batches, load_checkpoint  # noqa: E402
from deltasam_fairseq.inference.risk import Scorer, adversarial_loss, measure  # noqa: E402
from deltasam_fairseq.per_instance import Unsupported  # noqa: E402
from deltasam_fairseq.plugin_path import plugin_dir  # noqa: E402
from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402
from tests.support.compare import assert_same_bits, copies  # noqa: E402
from tests.support.problems import Problem, mlp, transformer  # noqa: E402


def slow_twin(problem: Problem, sentence: int, rho: float) -> float:
    """Move copies of the weights along the sentence's own gradient, and score it there."""
    at = [param.detach().clone().requires_grad_() for param in problem.params]
    gradient = torch.autograd.grad(problem.losses_at()(at)[sentence], at)
    norm = torch.stack([(part**2).sum() for part in gradient]).sum().sqrt()
    moved = [w.detach() + rho * part / norm for w, part in zip(at, gradient, strict=True)]
    return problem.losses_at()(moved)[sentence].item()


def one_of(problem: Problem, sentence: int) -> torch.Tensor:
    return problem.losses()()[sentence : sentence + 1]


def alone(problem: Problem, count: int) -> list[Callable[[], Tensor]]:
    return [partial(one_of, problem, sentence) for sentence in range(count)]


@pytest.mark.parametrize("rho", [0.01, 0.5])
def test_it_is_its_slow_twin_and_puts_the_weights_back(rho: float) -> None:
    problem = mlp(sentences=4)
    before = copies(problem.params)
    for sentence in range(4):
        function = partial(one_of, problem, sentence)
        at, worst, norm = adversarial_loss(function, problem.params, rho=rho)
        assert norm > 0
        assert at == pytest.approx(problem.losses()()[sentence].item(), rel=1e-12)
        assert worst == pytest.approx(slow_twin(problem, sentence, rho), rel=1e-9)
        assert worst > at
    assert_same_bits(problem.params, before)


def test_without_a_gradient_there_is_nothing_to_climb() -> None:
    weight = torch.zeros(2, requires_grad=True)
    assert adversarial_loss(lambda: weight.square().sum()[None], [weight], rho=1.0) == (
        0.0,
        0.0,
        0.0,
    )


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize(("dtype", "exactness"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_engines_give_the_same(
    make: Callable[..., Problem], dtype: torch.dtype, exactness: float
) -> None:
    problem = make(dtype=dtype)
    count = len(problem.losses()())
    found = {}
    for engine in ("batched", "loop", "auto"):
        scorer = Scorer(problem.model, rho=0.1, engine=engine, log=pytest.fail)
        found[engine] = scorer.score(problem.losses(), alone(problem, count))
        assert scorer.used == ("loop" if engine == "loop" else "batched")
    assert found["auto"] == found["batched"]
    assert found["batched"].losses == pytest.approx(found["loop"].losses, rel=exactness)
    assert found["batched"].risks == pytest.approx(found["loop"].risks, rel=exactness)
    assert found["batched"].norms == pytest.approx(found["loop"].norms, rel=exactness)
    assert all(worst > at for at, worst, _ in zip(*found["batched"], strict=True))


def test_auto_says_once_why_it_takes_the_loop_and_batched_stops() -> None:
    problem = mlp(sentences=3)
    weight = next(iter(problem.params))

    def square(sentence: slice) -> Tensor:
        return (problem.losses()() + (weight * weight).sum())[sentence]

    said: list[str] = []
    scorer = Scorer(problem.model, rho=0.1, engine="auto", log=said.append)
    single = [partial(square, slice(n, n + 1)) for n in range(3)]
    first = scorer.score(partial(square, slice(None)), single)
    assert scorer.score(partial(square, slice(None)), single) == first
    expected = [adversarial_loss(one, problem.params, rho=0.1) for one in single]
    assert list(zip(*first, strict=True)) == expected
    assert len(said) == 1
    assert "0.weight is used in torch" in said[0]
    assert scorer.scored == {"batched": 0, "loop": 6}
    assert scorer.reasons
    with pytest.raises(Unsupported, match="0.weight is used in torch"):
        Scorer(problem.model, rho=0.1, engine="batched", log=said.append).score(
            partial(square, slice(None)), single
        )


class Lengths:
    """A data set of sentences that are nothing but their lengths."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def num_tokens(self, number: int) -> int:
        return self.lengths[number]

    def set_epoch(self, epoch: int) -> None:
        assert epoch == 1


class KeepsAll:
    """A task without a limit of length."""

    @staticmethod
    def filter_indices_by_size(order: Any, *_: Any) -> Any:
        return order


def test_the_longest_sentences_come_first_and_the_last_batch_is_what_is_left() -> None:
    data = Lengths(3, 9, 1, 7, 5)
    assert list(batches(KeepsAll(), data, None, 2, longest_first=True)) == [[1, 3], [4, 0], [2]]
    assert list(batches(KeepsAll(), data, None, 2)) == [[0, 1], [2, 3], [4]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Write a classifier and a translation model; fairseq sorts the latter's batches."""
    made = {}
    for name, write, flags in (
        ("prediction", fairseq_data.write_prediction_data, toys.BERT),
        ("translation", fairseq_data.write_translation_data, toys.TRANSLATION),
    ):
        data = write(tmp_path_factory.mktemp(name))
        trainer = toys.make_trainer(data, *flags)
        trainer.consolidate_optimizer()
        place = data / "model.pt"
        trainer.save_checkpoint(str(place), {"train_iterator": {"epoch": 1}})
        made[name] = (data, place)
    return made


@pytest.mark.parametrize("name", ["prediction", "translation"])
def test_a_checkpoint_by_both_engines(checkpoints: dict[str, tuple[Path, Path]], name: str) -> None:
    data, checkpoint = checkpoints[name]
    by = {}
    count = {"prediction": 48, "translation": 64}[name]  # 7 to a batch leave 6 and 1
    for engine, size in (("batched", 7), ("batched", 48), ("loop", 7)):
        record, single = measure(
            load_checkpoint(data, checkpoint, torch.device("cpu")),
            "train",
            rho=0.05,
            engine=engine,
            batch_size=size,
        )
        assert record["n"] == count
        assert record["engine"] == engine
        assert single["ids"] == list(range(count))
        assert record["risk"] == pytest.approx(sum(single["risks"]) / count)
        assert record["loss"] == pytest.approx(sum(single["losses"]) / count)
        by[engine, size] = single
    for size in (7, 48):
        assert by["batched", size]["risks"] == pytest.approx(by["loop", 7]["risks"], rel=1e-5)
        assert by["batched", size]["norms"] == pytest.approx(by["loop", 7]["norms"], rel=1e-4)
        assert by["batched", size]["losses"] == pytest.approx(by["loop", 7]["losses"], rel=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ("--regularizer", "smart", "--smart-bregman", "1", "--store-ema"),
        ("--regularizer", "r3f", "--r3f-eps", "0.1"),
    ],
)
def test_the_risk_is_of_the_plain_loss_whatever_was_added_in_training(
    checkpoints: dict[str, tuple[Path, Path]], flags: tuple[str, ...]
) -> None:
    data, plain = checkpoints["prediction"]
    own = ("--criterion", "deltasam_sentence_prediction")
    trainer = toys.make_trainer(data, *toys.BERT, *own, *flags)
    trainer.consolidate_optimizer()
    place = data / "regularized.pt"
    trainer.save_checkpoint(str(place), {"train_iterator": {"epoch": 1}})
    found, expected = (
        measure(load_checkpoint(data, path, torch.device("cpu")), "train", rho=0.05)[0]
        for path in (place, plain)
    )
    assert found["engine"] == "batched"
    for key in ("loss", "risk"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)


def test_the_command_writes_the_record_and_the_sentences(
    checkpoints: dict[str, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, checkpoint = checkpoints["prediction"]
    out = tmp_path / "adversarial_risk.json"
    risk.main(
        [
            *(str(data), "--path", str(checkpoint), "--split", "train", "--rho", "0.05", "--cpu"),
            *("--out", str(out), "--user-dir", str(plugin_dir())),
        ]
    )
    record = json.loads(out.read_text())
    assert (record["engine"], record["n"], record["rho"]) == ("batched", 48, 0.05)
    single = json.loads((tmp_path / risk.SENTENCES).read_text())
    assert len(single["losses"]) == len(single["risks"]) == 48
    assert "refused" not in record
    capsys.readouterr()
