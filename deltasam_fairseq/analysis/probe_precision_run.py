"""One measurement of the probes from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deltasam_fairseq.analysis.probe_precision import measure, runnable
from deltasam_fairseq.analysis.probe_precision_load import Subject, pretrained, random_subject
from deltasam_fairseq.analysis.probe_precision_model import Batch
from deltasam_fairseq.analysis.probe_precision_record import Settings, record_of


def run_pretrained(
    folder: Path,
    mrpc: Path,
    settings: Settings,
    around: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure on a pretrained encoder and MRPC.

    Args:
        folder: With ``config.json``, weights and ``vocab.txt`` or ``tokenizer.json``.
        mrpc: ``train.tsv``.
        settings: Of the measurement.
        around: Date, commit, hardware and versions.
        say: Called with progress.

    Returns:
        The record; it names the files without their folders.
    """
    torch.set_num_threads(settings.threads)
    subject = pretrained(
        folder,
        mrpc,
        batches=settings.batches,
        sentences=settings.sentences,
        tune=settings.tune,
        seed=settings.seed,
        say=say,
    )
    source = f"--encoder {folder.absolute().name} --mrpc {mrpc.name}"
    return _run(subject, settings, source, around, say)


def run_random(
    size: str, settings: Settings, around: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure on random weights and sentences.

    Args:
        size: Name of the encoder's size.
        settings: Of the measurement.
        around: Date, commit, hardware and versions.
        say: Called with progress.

    Returns:
        The record.
    """
    torch.set_num_threads(settings.threads)
    subject = random_subject(
        size,
        batches=settings.batches,
        sentences=settings.sentences,
        tokens=settings.tokens,
        seed=settings.seed,
    )
    return _run(subject, settings, f"--random {size}", around, say)


def _run(
    subject: Subject,
    settings: Settings,
    source: str,
    around: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    device = torch.device(settings.device)
    can, cannot = runnable(device, dropout=settings.dropout)
    say(f"not run on {device.type}: {', '.join(cannot) or 'nothing'}")
    found = measure(
        subject.model.to(device),
        [Batch(*(tensor.to(device) for tensor in batch)) for batch in subject.batches],
        radii=settings.rho,
        eta=settings.eta,
        seed=settings.seed,
        precisions=can,
        seconds=60 * settings.minutes or float("inf"),
        say=say,
    )
    return record_of(
        subject,
        found,
        settings,
        # Where time ran out: the batches that were probed.
        command=replace(settings, batches=len(found[0].bends)).command(source),
        not_run=cannot,
        around=around,
    )
