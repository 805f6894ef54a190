"""Tiny data for the tasks of fairseq, one folder for each kind."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.support import fairseq_data

FEATURES = 10

_CODES = "config.json"


def folder_of(kind: str, root: Path) -> Path:
    """Write a kind of data once.

    Args:
        kind: One of :data:`KINDS`.
        root: Folder of all kinds.

    Returns:
        What a run is given: the kind's folder, or the file in it that names the others.
    """
    folder = root / kind
    if not folder.exists():
        KINDS[kind](folder)
    return folder / _CODES if kind == "codes" else folder


def _languages(folder: Path) -> None:
    for language, count in (("aa", 48), ("bb", 24)):
        fairseq_data.write_monolingual_data(folder / language, train=count)
    shutil.copy(folder / "aa" / "dict.txt", folder / "dict.txt")


def _ranking(folder: Path) -> None:
    fairseq_data.write_prediction_data(folder)
    for candidate in ("input1", "input2"):
        shutil.copytree(folder / "input0", folder / candidate)
    (folder / "label" / "train.label").write_text("0\n1\n" * 24)


def _channels(folder: Path) -> None:
    fairseq_data.write_monolingual_data(folder)
    for channel in ("unitA", "unitB"):
        shutil.copy(folder / "dict.txt", folder / f"dict.{channel}.txt")
        for ending in ("bin", "idx"):
            shutil.copy(folder / f"train.{ending}", folder / f"train.{channel}.{ending}")


def _speech(folder: Path) -> None:
    draw, numbers = random.Random(3), np.random.default_rng(3)
    folder.mkdir(parents=True)
    fairseq_data.dictionary_of_words().save(str(folder / "dict.txt"))
    texts = ["id\taudio\tn_frames\ttgt_text\tspeaker"]
    units = ["id\tsrc_audio\tsrc_n_frames\ttgt_audio\ttgt_n_frames"]
    for number in range(16):
        count, spoken = draw.randint(9, 30), draw.randint(2, 7)
        audio = folder / f"{number}.npy"
        np.save(audio, numbers.normal(size=(count, FEATURES)).astype("float32"))
        text = " ".join(draw.choices(fairseq_data.WORDS, k=spoken))
        texts.append(f"{number}\t{audio}\t{count}\t{text}\ts")
        codes = " ".join(str(draw.randrange(20)) for _ in range(spoken))
        units.append(f"{number}\t{audio}\t{count}\t{codes}\t{spoken}")
    (folder / "train.tsv").write_text("\n".join(texts) + "\n")
    (folder / "units.tsv").write_text("\n".join(units) + "\n")
    features = f"input_feat_per_channel: {FEATURES}\nvocab_filename: dict.txt\n"
    sound = f"features:\n  sample_rate: 16000\n  n_mels: {FEATURES}\n"
    (folder / "config.yaml").write_text(features + sound)


def _speech_to_units(folder: Path) -> None:
    _speech(folder)
    shutil.move(folder / "units.tsv", folder / "train.tsv")


def _codes(folder: Path) -> None:
    draw = np.random.default_rng(4)
    folder.mkdir(parents=True)
    lengths = draw.integers(4, 12, size=16)
    total = int(lengths.sum())
    (folder / "train.leng.txt").write_text("\n".join(map(str, lengths)) + "\n")
    (folder / "train.path.txt").write_text("\n".join(f"{i}.wav" for i in range(16)) + "\n")
    np.save(folder / "train.code.npy", draw.integers(0, 20, size=total))
    np.save(folder / "train.dur.npy", draw.integers(1, 5, size=total))
    np.save(folder / "train.f0.npy", draw.uniform(50, 200, size=total).astype("float32"))
    torch.save({"f0_mean": 125.0, "f0_std": 40.0}, folder / "train.f0_stat.pt")
    config = {"n_units": 20, "sampling_rate": 16000, "code_hop_size": 320, "multispkr": None}
    manifests = {"train": str(folder / "train")}
    (folder / _CODES).write_text(json.dumps({**config, "manifests": manifests}))


KINDS: dict[str, Callable[[Path], object]] = {
    "translation": fairseq_data.write_translation_data,
    "monolingual": fairseq_data.write_monolingual_data,
    "prediction": fairseq_data.write_prediction_data,
    "ranking": _ranking,
    "languages": _languages,
    "channels": _channels,
    "speech": _speech,
    "units": _speech_to_units,
    "codes": _codes,
}
