"""The study of sentences' lengths: a tiny run, its strategies and its ratios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deltasam_fairseq.benchmarks.variants import Times
from deltasam_fairseq.per_instance import Engine, batched_per_instance_step
from deltasam_fairseq.per_instance.factors import Outer, Rows
from scripts.studies import length
from scripts.studies.length import STRATEGIES, Encoder, Problem

SMALL = (
    "--width 8 --heads 2 --layers 1 --words 20 --lengths 2,8 --batch-tokens 17 --repeats 2 "
    "--clock processor --json"
).split()


def test_it_measures_every_length_and_strategy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    figure, record = tmp_path / "lengths.svg", tmp_path / "record.json"
    length.main([*SMALL, "--plot", str(figure)])
    record.write_text(capsys.readouterr().out)
    found = json.loads(record.read_text())
    assert [(one["tokens"], one["sentences"]) for one in found["lengths"]] == [(2, 8), (8, 2)]
    for one in found["lengths"]:
        spreads = one["clocks"]["processor"]["ratios"]
        assert set(spreads) == set(STRATEGIES)
        assert all(spread["n"] == 2 and spread["min"] > 0 for spread in spreads.values())
    assert figure.read_text().startswith("<?xml")
    assert found["settings"]["plot"] == "lengths.svg"
    length.main(["--show", str(record)])
    assert capsys.readouterr().out.count("\n") == 2 + len(STRATEGIES)


def test_the_strategies_are_the_two_ends_and_the_choice() -> None:
    square = torch.Size((8, 8))
    for tokens in (1, 1000):
        use = Outer(torch.zeros(1, tokens, 8), torch.zeros(1, tokens, 8))
        assert not STRATEGIES["thin"].forms_gradients([use], square)
        assert STRATEGIES["formed"].forms_gradients([use], square)
    # The rows of an embedding are few beside its matrix, which would fill the memory.
    words = Rows(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, 8))
    assert not STRATEGIES["formed"].forms_gradients([words], torch.Size((1000, 8)))
    assert STRATEGIES["plan"] == Engine(torch.nn.Linear(1, 1)).plan


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_computes_the_same_gradient(name: str) -> None:
    encoder = Encoder(layers=1, width=8, heads=2, words=20).double()
    problem = Problem(encoder, sentences=3, tokens=5)
    gradients = []
    for plan in (STRATEGIES["plan"], STRATEGIES[name]):
        encoder.zero_grad()
        batched_per_instance_step(Engine(encoder, plan=plan), problem.losses, rho=0.05)
        gradients.append(
            torch.cat([p.grad.flatten() for p in problem.params if p.grad is not None])
        )
    torch.testing.assert_close(gradients[1], gradients[0])


def test_one_loss_for_every_sentence_whatever_the_others_are() -> None:
    encoder = Encoder(layers=2, width=8, heads=2, words=20).double()
    problem = Problem(encoder, sentences=4, tokens=3)
    losses = problem.losses()
    problem.tokens, problem.classes = problem.tokens[:1], problem.classes[:1]
    torch.testing.assert_close(problem.losses(), losses[:1])


def test_ratios_are_taken_within_rounds() -> None:
    """A round on a busy machine takes twice as long, and its ratio is that of the others."""
    found = {
        name: [Times(seconds, seconds / 2), Times(2 * seconds, 4 * seconds)]
        for name, seconds in (("sam", 2.0), ("plan", 3.0))
    }
    assert length.ratios(found, "plan", "elapsed") == [1.5, 1.5]
    assert length.ratios(found, "plan", "processor") == [1.5, 1.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "0"], "--width: 0 is not a number at least 1"),
        (["--heads", "7"], "--width 384 is not divisible by --heads 7"),
        (["--lengths", "16,long"], "--lengths: 'long' is not a number at least 1"),
        (["--batch-tokens", "512"], "--lengths: 1024 is above --batch-tokens"),
        (["--device", "cuda", "--clock", "processor"], "the GPU does the work"),
        (["--plot", "lengths.txt"], "lengths.txt: a figure ends in .png, .pdf or .svg"),
        (["--show", "absent.json"], "absent.json holds no record"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_measured(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(length, "take_turns", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stopped:
        length.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_records_of_other_studies_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("[]", "{}", '{"study": "depth"}'):
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(SystemExit):
            length.main(["--show", str(tmp_path / "record.json")])
        assert "is no record of the study length" in capsys.readouterr().err
