"""The verb, without a measurement: that takes its own test."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deltasam_fairseq.benchmarks.record import Measurement
from deltasam_fairseq.cli import bench
from deltasam_fairseq.errors import UserError

pytestmark = pytest.mark.fairseq


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["step", "--threads", "1", "--repeats", "3", *words])


@pytest.fixture
def made_up(measurement: Measurement, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """Put the made-up measurement in the place of a real one."""
    from deltasam_fairseq.benchmarks import step

    monkeypatch.setattr(step, "measure", lambda *_: measurement)
    return measurement


def test_within_the_limits_a_check_passes(made_up: Measurement) -> None:
    assert bench.run(parsed("--check")) == 0


def test_beyond_a_limit_a_check_fails_and_says_why(
    made_up: Measurement, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.peak["sam"] *= 2
    assert bench.run(parsed()) == 0
    assert bench.run(parsed("--check")) == 1
    assert "FAIL  translation: extra memory of sam" in capsys.readouterr().out
    assert bench.run(parsed("--check", "--json")) == 1
    out, err = capsys.readouterr()
    assert "FAIL  translation: extra memory of sam" in err
    assert [c["passed"] for c in json.loads(out)["checks"]].count(False) == 2  # one per model


def test_a_check_that_judges_nothing_says_so(
    made_up: Measurement, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.parameters = 1000
    made_up.peak["sam"] *= 2
    assert bench.run(parsed("--check")) == 0
    out, err = capsys.readouterr()
    assert "FAIL" not in out
    assert "no limit was checked" in err


def test_limits_are_held_against_the_clock_that_was_asked_for(made_up: Measurement) -> None:
    times = made_up.updates["sam"]
    made_up.updates["sam"] = [t._replace(elapsed=2 * t.elapsed) for t in times if t is not None]
    made_up.updates["delta_sam"] = made_up.updates["sam"]
    assert bench.run(parsed("--check")) == 1
    assert bench.run(parsed("--check", "--clock", "processor")) == 0


def test_limits_are_those_of_single_precision(made_up: Measurement) -> None:
    """In fp16 a probe of Eq. 5 is no pass like the others."""
    made_up.peak["sam"] *= 2
    assert bench.run(parsed("--check", "--precision", "fp16")) == 0


def test_a_record_is_shown_as_a_table(
    made_up: Measurement, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    del made_up
    assert bench.run(parsed("--json", "--model", "translation")) == 0
    path = tmp_path / "record.json"
    path.write_text(capsys.readouterr().out)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.run(parser.parse_args(["show", str(path)])) == 0
    assert "| translation | 2 × 450 + 400 | 1.10 |" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--model", "minilm,speech"), ("--methods", "both")])
def test_unknown_names_are_refused_before_anything_is_built(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltasam_fairseq.benchmarks import step

    monkeypatch.setattr(step, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="unknown name '(speech|both)'"):
        bench.run(parsed(*words))


def test_the_verb_is_light_until_it_runs() -> None:
    code = "import sys, deltasam_fairseq.cli.bench; print({'torch', 'fairseq'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
