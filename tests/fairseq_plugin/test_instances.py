"""``--sam-per-instance-engine``: the batched engine in the trainer, against the loop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from deltasam_fairseq.fairseq_plugin import hook
from deltasam_fairseq.fairseq_plugin.sharpness import per_instance as instances
from deltasam_fairseq.per_instance import AmbiguousBatch, Engine, Unsupported
from tests.fairseq_plugin.precision import MODES
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits

FLAGS = ("--sam-method", "per_instance", "--dropout", "0", "--sam-inner", "sgd", "--lr", "0.05")


@pytest.mark.parametrize("freq", [1, 2])
@pytest.mark.parametrize("scope", ["update", "micro"])
def test_the_batched_engine_is_the_loop(
    translation: Path, float64: torch.dtype, freq: int, scope: str
) -> None:
    ends, logs = [], []
    for engine in ("loop", "batched"):
        flags = (*FLAGS, "--sam-per-instance-engine", engine, "--sam-scope", scope)
        trainer, logged = toys.trained(
            translation, *toys.PRECISE, *flags, count=6 // freq, freq=freq, dtype=float64
        )
        logs.append(logged)
        ends.append(toys.parameters(trainer))
    assert_close(ends[1], ends[0], rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(logs[1], logs[0], strict=True):
        for meter in ("loss", "sam_loss", "sharpness"):
            assert ours[meter] == pytest.approx(theirs[meter], rel=1e-6), meter
        assert ours["sam_inorm_max"] >= ours["sam_inorm"] > 0


def test_two_passes_for_all_sentences(translation: Path) -> None:
    flags = (*FLAGS, "--sam-per-instance-engine", "batched")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    samples = toys.batches(trainer)
    toys.updates(trainer, [[s] for s in samples[:3]])
    calls: list[int] = []
    trainer.get_model().register_forward_hook(lambda *_: calls.append(1))
    trainer.train_step(samples[3:4])
    assert len(calls) == 2


@pytest.mark.parametrize("mode", ["fp16", "bf16", "amp"])
def test_half_precision_comes_close_to_the_loop(
    translation: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    toys.precision_without_gpu(monkeypatch)
    logs = []
    for engine in ("loop", "batched"):
        flags = (*FLAGS, "--sam-inner", "adam", "--sam-per-instance-engine", engine, *MODES[mode])
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        logs.append(toys.updates(trainer, [toys.batches(trainer)[:1]])[0])
    for meter in ("loss", "sam_loss", "gnorm"):
        assert logs[1][meter] == pytest.approx(logs[0][meter], rel=0.02), meter


def test_what_the_engine_does_not_know_falls_back_or_stops(
    translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for engine in ("auto", "batched", "loop"):
        flags = (*FLAGS, "--sam-per-instance-engine", engine)
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        layer = trainer.get_model().encoder.layers[0]
        layer.fc1 = torch.nn.utils.parametrizations.weight_norm(layer.fc1)
        trainer.reinitialize()
        before = toys.parameters(trainer)
        samples = toys.batches(trainer)[:2]
        if engine == "batched":
            trainer.save_checkpoint = lambda *a, **k: None  # no crash.pt
            with pytest.raises(Unsupported):
                trainer.train_step(samples[:1])
            assert_same_bits(toys.parameters(trainer), before)
            continue
        with caplog.at_level(logging.WARNING, logger=instances.__name__):
            toys.updates(trainer, [[s] for s in samples])
        assert hook._runs[trainer].needs_loop == (engine == "auto")
        found = [r.getMessage() for r in caplog.records if r.name == instances.__name__]
        assert len(found) == 1
        assert "sentence by sentence" in found[0]


def test_the_loop_runs_what_the_engine_cannot_with_padded_batches(translation: Path) -> None:
    """A packed sequence has no padding: a sentence of a recurrent model is a batch of its own."""
    trainer = toys.make_trainer(translation, *toys.LSTM, "--sam-method", "per_instance")
    sample = toys.sentences(trainer, range(6))
    assert sample["net_input"]["src_tokens"].eq(trainer.task.source_dictionary.pad()).any()
    (log,) = toys.updates(trainer, [[sample]])
    assert log["sharpness"] > 0


def test_a_batch_that_tells_nothing_goes_by_the_loop_alone(
    translation: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends = []
    for engine in ("loop", "batched"):
        flags = (*FLAGS, "--sam-per-instance-engine", engine)
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
        samples = toys.batches(trainer)[:5]
        ascend = Engine.ascend
        asked: list[int] = []

        def unsure(
            self: Engine, *args: Any, asked: list[int] = asked, ascend: Any = ascend, **kwargs: Any
        ) -> Any:
            asked.append(1)
            if len(asked) in (2, 4):
                raise AmbiguousBatch("it does not tell")
            return ascend(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "ascend", unsure)
            toys.updates(trainer, [[s] for s in samples])
        ends.append(toys.parameters(trainer))
        run = hook._runs[trainer]
        assert run.ambiguous_batches == (2 if engine == "batched" else 0)
        assert not run.needs_loop
    assert len(asked) == 5
    assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-5)
    told = [r.getMessage() for r in caplog.records if "sentence by sentence" in r.getMessage()]
    assert len(told) == 1
    assert "it does not tell" in told[0]
