"""Kills, full disks, broken files and broken batches: an error, and no work lost."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import checkpoint_utils, trainer  # noqa: E402
from fairseq.criterions.cross_entropy import CrossEntropyCriterion  # noqa: E402
from fairseq.criterions.label_smoothed_cross_entropy import (  # noqa: E402
    LabelSmoothedCrossEntropyCriterion,
)

from deltasam_fairseq.fairseq_plugin import checkpoints, step_errors  # noqa: E402
from deltasam_fairseq.fairseq_plugin.checkpoints import damage  # noqa: E402
from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402
from tests.support import fault_runs as runs  # noqa: E402
from tests.support.compare import assert_same_bits  # noqa: E402
from tests.system.test_resume import assert_same_run, checkpoint  # noqa: E402

checkpoints.install()
step_errors.install()

pytestmark = pytest.mark.multiprocess

LANGUAGE_MODEL = (
    "--task language_modeling --arch transformer_lm --tokens-per-sample 16 --decoder-layers 2 "
    "--decoder-embed-dim 16 --decoder-ffn-embed-dim 24 --decoder-attention-heads 2 "
    "--sample-break-mode eos"
).split()

# Seconds within which a worker notices that another is gone.
SOON = 20.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One epoch of 30 updates, 15 of two workers.
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("faults"), train=240)


def flags(data: Path, save: Path, *more: str) -> list[str]:
    """Return the flags of a run that saves every second update."""
    return [
        *(str(data), "--save-dir", str(save), *toys.flags(toys.TRANSLATION, save=True)),
        *("--max-epoch", "1", "--no-epoch-checkpoints"),
        *("--save-interval-updates", "2", "--keep-interval-updates", "2", *more),
    ]


class Undisturbed:
    """A run of each number of workers that nothing happens to, made when asked for."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self._made: dict[int, tuple[dict[str, Any], float]] = {}

    def run(self, workers: int) -> tuple[dict[str, Any], float]:
        """Return its last checkpoint, and the seconds from its start to its end."""
        if workers not in self._made:
            save = self.folder / str(workers)
            started = runs.start(flags(self.data, save), self.folder / "logs", workers=workers)
            with runs.none_left(started):
                assert runs.wait_for(save.exists, started, runs.PATIENCE), started[0].said()
                begun = time.monotonic()
                runs.finish(started)
            self._made[workers] = checkpoint(save), time.monotonic() - begun
        return self._made[workers]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(data, tmp_path_factory.mktemp("undisturbed"))


def assert_whole(save: Path) -> None:
    """Make sure that whatever has a checkpoint's name is one."""
    for path in save.glob("*.pt"):
        assert damage(str(path)) is None, path
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


def reached(save: Path) -> int:
    return int(checkpoint(save)["optimizer_history"][-1]["num_updates"])


def goes_on(data: Path, save: Path, logs: Path, undisturbed: Undisturbed, workers: int = 1) -> None:
    """Start a run again, and compare where it ends with where it would have ended."""
    started = runs.start(flags(data, save), logs, workers=workers)
    with runs.none_left(started):
        runs.finish(started)
    assert_same_run(undisturbed.run(workers)[0], checkpoint(save))
    assert not list(save.glob("*.tmp"))


def test_killed_while_copying_to_checkpoint_last(
    data: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    save = tmp_path / "run"
    (killed,) = runs.start(
        flags(data, save), tmp_path, prepare=runs.die_while_copying, arguments=(3,)
    )
    assert killed.ends() == -9
    assert (save / "checkpoint_last.pt.tmp").exists()
    assert_whole(save)
    assert reached(save) == 4
    goes_on(data, save, tmp_path, undisturbed)


def test_a_worker_that_dies_in_the_ascents_reduction(
    data: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    save = tmp_path / "run"
    first, second = started = runs.start(
        flags(data, save),
        tmp_path,
        workers=2,
        prepare=runs.die_in_the_ascent,
        arguments=(6,),
        on=1,
    )
    with runs.none_left(started):
        assert second.ends() == -9
        assert first.ends(within=SOON) == 1
    assert "RuntimeError: the workers could not add up the ascent's gradient" in first.said()
    assert_whole(save)
    assert reached(save) == 4
    goes_on(data, save, tmp_path, undisturbed, workers=2)


def test_a_full_disk(data: Path, tmp_path: Path, undisturbed: Undisturbed) -> None:
    save = tmp_path / "run"
    started = runs.start(flags(data, save, "--max-update", "5"), tmp_path)
    runs.finish(started)
    before = {path.name: path.read_bytes() for path in save.iterdir()}
    size = len(before["checkpoint_last.pt"])
    (full,) = runs.start(
        flags(data, save), tmp_path, prepare=runs.allow_files_of, arguments=(size // 2,)
    )
    assert full.ends() == 1
    said = full.said().splitlines()[-1]
    assert re.search(r"^OSError: could not save .*checkpoint_1_6\.pt: File too large \(.*MiB", said)
    assert "training goes on from checkpoint_last.pt" in said
    assert {path.name: path.read_bytes() for path in save.iterdir()} == before
    goes_on(data, save, tmp_path, undisturbed)


def test_all_workers_say_which_checkpoint_is_broken_and_which_loads(
    data: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    save = tmp_path / "run"
    runs.finish(runs.start(flags(data, save, "--max-update", "4"), tmp_path, workers=2))
    last = save / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[:10_000])
    started = runs.start(flags(data, save), tmp_path, workers=2)
    with runs.none_left(started):
        for worker in started:
            assert worker.ends(within=60) == 1
            assert f"UserError: {last} is cut off" in worker.said()
    (flag, good), *_ = re.findall(r"^  (--restore-file) (\S+)  ", started[1].said(), re.M)
    assert good == str(save / "checkpoint_1_4.pt")
    runs.finish(runs.start(flags(data, save, flag, good), tmp_path, workers=2))
    assert_same_run(undisturbed.run(2)[0], checkpoint(save))


def crashed(save: Path, updates: int) -> dict[str, torch.Tensor]:
    """Return the weights of crash.pt, which are finite, unmoved and those of the last save."""
    weights = torch.load(save / "crash.pt", weights_only=False)["model"]
    last = checkpoint(save)
    assert last["optimizer_history"][-1]["num_updates"] == updates
    for name, value in weights.items():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, last["model"][name]), name
    return weights


@pytest.mark.parametrize("freq", ["1", "2"])
@pytest.mark.parametrize(
    "how",
    [
        ("--sam-method", "sam"),
        ("--sam-method", "delta_sam"),
        ("--sam-scope", "micro"),
        ("--sam-method", "per_instance"),
    ],
    ids=" ".join,
)
def test_a_nan_batch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: tuple[str, str],
    freq: str,
) -> None:
    """A number to predict is no number, and fairseq's search for the module fails (RoBERTa)."""
    data = fairseq_data.write_prediction_data(tmp_path / "data", regression=True)
    labels = data / "label" / "train.label"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join([*lines[:-1], "nan"]) + "\n")
    found: list[dict[str, torch.Tensor]] = []

    class Detector(trainer.NanDetector):
        def __init__(self, model: Any) -> None:
            found.append({n: p.detach().clone() for n, p in model.named_parameters()})
            super().__init__(model)

    monkeypatch.setattr(trainer, "NanDetector", Detector)
    save = tmp_path / "run"
    toy = [*toys.PREDICTION, "--num-classes", "1", "--regression-target", *how]
    flags = ("--save-dir", str(save), "--save-interval-updates", "1", "--update-freq", freq)
    with pytest.raises(FloatingPointError) as caught:
        toys.train(data, *toy, *flags, "--batch-size", "4", save=True)
    updates = reached(save)
    assert updates > 0
    for part in (f"gradients are Nan/Inf in update {updates + 1};", f"are in {save}/crash.pt"):
        assert part in str(caught.value)
    weights = crashed(save, updates)
    (before,) = found
    assert_same_bits(before, {name: weights[name] for name in before})
    assert_whole(save)


def test_the_search_for_the_module_that_made_a_nan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder alone, where fairseq's search works, and runs the batch once, as it is."""
    losses: list[torch.Tensor] = []
    compute_loss = CrossEntropyCriterion.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss, more = compute_loss(self, *args, **kwargs)
        losses.append(loss)
        return (loss * float("nan") if len(losses) > 8 else loss), more

    monkeypatch.setattr(CrossEntropyCriterion, "compute_loss", broken)
    save = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="in update 5; the log says which module made it"):
        toys.train(
            fairseq_data.write_monolingual_data(tmp_path / "data"),
            *LANGUAGE_MODEL,
            *("--save-dir", str(save), "--save-interval-updates", "1", "--sam-method", "sam"),
            save=True,
        )
    crashed(save, updates=4)
    # The ascent, the descent, and the search.
    assert len(losses) == 8 + 3
    assert "NaN detected in output of " in caplog.text


def test_an_exception_at_the_moved_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once fairseq saves crash.pt, and the weights have to be back by then."""
    calls: list[dict[str, torch.Tensor]] = []
    forward = LabelSmoothedCrossEntropyCriterion.forward

    def broken(self: Any, model: Any, sample: Any, reduce: bool = True) -> Any:
        calls.append({n: p.detach().clone() for n, p in model.named_parameters()})
        if len(calls) == 6:
            raise KeyError("a broken batch")
        return forward(self, model, sample, reduce)

    monkeypatch.setattr(LabelSmoothedCrossEntropyCriterion, "forward", broken)
    save = tmp_path / "run"
    with pytest.raises(KeyError, match="a broken batch"):
        toys.train(
            data,
            *toys.TRANSLATION,
            *("--save-dir", str(save), "--save-interval-updates", "1", "--sam-method", "sam"),
            save=True,
        )
    weights = crashed(save, updates=2)
    name = "encoder.layers.0.fc1.weight"
    assert torch.equal(calls[4][name], weights[name])
    assert not torch.equal(calls[5][name], weights[name])


@pytest.mark.faults
def test_twenty_kills_cost_no_work(data: Path, tmp_path: Path, undisturbed: Undisturbed) -> None:
    draw = random.Random(20)
    kills, while_saving, attempts = 0, 0, 0
    while kills < 20:
        attempts += 1
        assert attempts <= 30, f"only {kills} of {attempts} runs could be killed before their end"
        # Of four: one worker, one of two, one worker, both of two.
        workers = 1 + kills % 2
        victims = [draw.randrange(2)] if kills % 4 == 1 else list(range(workers))
        delay = draw.uniform(0, 0.8) * undisturbed.run(workers)[1]
        save = tmp_path / f"run{attempts}"
        saving = kills % 5 > 2
        if not _kill(flags(data, save), save, tmp_path, workers, victims, delay, saving):
            continue
        kills += 1
        while_saving += bool(list(save.glob("*.tmp")))
        assert_whole(save)
        goes_on(data, save, tmp_path, undisturbed, workers)
    print(f"{kills} kills in {attempts} runs, {while_saving} of them while saving")
    assert while_saving > 0


def _kill(
    flags: list[str],
    save: Path,
    logs: Path,
    workers: int,
    victims: list[int],
    delay: float,
    saving: bool,
) -> bool:
    """Start a run and kill workers of it some time later; tell whether they were killed."""
    started = runs.start(flags, logs, workers=workers)
    with runs.none_left(started):
        # The first worker makes the folder, once all have found each other.
        assert runs.wait_for(save.exists, started, runs.PATIENCE), started[0].said()
        time.sleep(delay)
        if saving:
            runs.wait_for(lambda: bool(list(save.glob("*.tmp"))), started, 5)
        for victim in victims:
            started[victim].kill()
        codes = [started[victim].ends() for victim in victims]
        for rank in set(range(workers)) - set(victims):
            code = started[rank].ends(within=SOON)
            assert code == 0 or "one of them has stopped" in started[rank].said()
    return codes == [-9] * len(victims)
