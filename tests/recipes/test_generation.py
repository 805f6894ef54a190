from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes import generation
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.evaluation import EvaluationOptions
from deltasam_fairseq.recipes.generation import Generated, generate
from deltasam_fairseq.recipes.hypotheses import GPT2, SENTENCEPIECE, in_order
from deltasam_fairseq.recipes.run_folder import RunFolder
from tests.support.prepared_data import GENERATED, TARGETS, finished_data, program

HYPOTHESES = ["Get a leaf.", "Add two numbers."]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.best_checkpoint.write_bytes(b"weights")
    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace fairseq-generate by a program that prints its output."""
    made: list[str] = []

    def command(recipe: Any, *, overrides: Any, **arguments: Any) -> list[str]:
        made.append("")
        text = f"print({GENERATED!r}); raise SystemExit({int('--fail' in overrides)})"
        return program(text)

    monkeypatch.setattr(generation, "generate_command", command)
    monkeypatch.setattr(generation, "require_fairseq", lambda: None)
    return made


def decoded(run: RunFolder, said: list[str] | None = None, **wishes: Any) -> Generated:
    path = run.path.parent / "data"
    data = finished_data(path) if not path.exists() else PreparedData.load(path)
    say = (lambda line: None) if said is None else said.append
    return generate(RECIPES.get("text"), data, run, "test", EvaluationOptions(**wishes), say=say)


def test_hypotheses_are_plain_text_in_the_order_of_the_references(
    run: RunFolder, calls: list[str]
) -> None:
    said: list[str] = []
    found = decoded(run, said)
    assert found.hypotheses == HYPOTHESES
    assert found.references == TARGETS
    assert (found.folder / "hypotheses.txt").read_text().splitlines() == HYPOTHESES
    assert (found.folder / "references.txt").read_text().splitlines() == TARGETS
    assert said[1:] == ["  1 of 2", "  2 of 2"]


def test_the_same_checkpoint_is_not_decoded_twice(run: RunFolder, calls: list[str]) -> None:
    first = decoded(run)
    written = first.folder / "generate.log"
    written.unlink()
    assert decoded(run).hypotheses == HYPOTHESES
    assert not written.exists()


@pytest.mark.parametrize(
    ("checkpoint", "overrides", "message"),
    [
        (b"other weights", [], "results of another checkpoint; pass --force"),
        (b"weights", ["--beam", "2"], "results of other decoding flags; pass --force"),
        (b"other", ["--beam", "2"], "results of another checkpoint and other decoding flags;"),
    ],
)
def test_results_of_another_checkpoint_are_not_mixed(
    run: RunFolder, calls: list[str], checkpoint: bytes, overrides: list[str], message: str
) -> None:
    decoded(run)
    run.best_checkpoint.write_bytes(checkpoint)
    with pytest.raises(UserError, match=message):
        decoded(run, extra=overrides)
    decoded(run, extra=overrides, force=True)
    decoded(run, extra=overrides)


def test_a_broken_off_decoding_is_done_again(run: RunFolder, calls: list[str]) -> None:
    with pytest.raises(UserError, match="fairseq-generate ended with status 1"):
        decoded(run, extra=["--fail"])
    assert decoded(run).hypotheses == HYPOTHESES


def test_without_a_checkpoint_there_is_nothing_to_decode(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint_best.pt: no such file; train first"):
        decoded(RunFolder(tmp_path / "run"))


def test_a_missing_sentence_is_an_error() -> None:
    with pytest.raises(UserError, match="left 1 of 3 sentences out, the first is number 3"):
        in_order(SENTENCEPIECE.read(GENERATED.splitlines()), count=3)


def test_of_several_hypotheses_the_best_counts() -> None:
    assert SENTENCEPIECE.read(["H-0\t-0.1\t▁best", "H-0\t-0.2\t▁second"]) == {0: "best"}


def test_an_empty_hypothesis_is_kept() -> None:
    assert SENTENCEPIECE.read(["H-0\t-0.1\t"]) == {0: ""}


def test_text_of_gpt2_is_taken_as_the_decoding_process_put_it_together() -> None:
    assert GPT2.read(["H-1\t-0.1\t31373", "D-1\t-0.1\thello there ", "D-2\t-1\t"]) == {
        1: "hello there",
        2: "",
    }
