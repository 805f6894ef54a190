"""Decoding a split in parts, several at a time, each kept when it is finished."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.process import Say, run_program
from deltasam_fairseq.files import read_json, write_json
from deltasam_fairseq.recipes.environment_record import hardware
from deltasam_fairseq.recipes.hypotheses import Reader

#: Sentences in a part: few enough that a stopped decoding loses little.
PART = 1000
PLAN = "decoding.json"

_STEPS = 10


@dataclass
class Shards:
    """The parts of one decoding.

    fairseq deals its batches out to them in turn, so every sentence is in the same
    batch however many parts there are.

    Args:
        folder: Where logs and finished parts are kept.
        wanted: What the hypotheses depend on; finished parts of anything else are removed.
        sentences: Number of sentences of the split.
        processes: How many parts are decoded at the same time.
        reader: Reads the output.
        say: Told how far it is.
    """

    folder: Path
    wanted: dict[str, Any]
    sentences: int
    processes: int
    reader: Reader
    say: Say
    parts: int = field(init=False)

    def __post_init__(self) -> None:
        """Continue with the number of parts of a decoding that was broken off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rounds = math.ceil(self.sentences / PART / self.processes)
        self.parts = max(1, rounds) * self.processes
        plan = self.folder / PLAN
        earlier = read_json(plan) if plan.is_file() else {}
        if earlier.get("wanted") == self.wanted:
            self.parts = earlier["parts"]
        else:
            self.discard()
            write_json(plan, {"wanted": self.wanted, "parts": self.parts})

    def run(self, command: Sequence[str]) -> dict[int, str]:
        """Decode the parts that are not there yet, with the call for all; finished ones stay."""
        todo = [part for part in range(self.parts) if not self._result(part).is_file()]
        if len(todo) < self.parts:
            self.say(f"{self.parts - len(todo)} of {self.parts} parts are there from before")
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.processes):
            slots.put(slot)
        count = self._counter(sum(len(self._read(p)) for p in range(self.parts) if p not in todo))

        failed = threading.Event()

        def decode(part: int) -> None:
            if failed.is_set():
                return
            slot = slots.get()
            try:
                self._decode(part, command, slot, count)
            except BaseException:
                failed.set()
                raise
            finally:
                slots.put(slot)

        with ThreadPoolExecutor(self.processes) as pool:
            futures = [pool.submit(decode, part) for part in todo]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                failed.set()
                raise
        return {n: text for part in range(self.parts) for n, text in self._read(part).items()}

    def discard(self) -> None:
        """Remove plan and parts."""
        for path in [*self.folder.glob("part-*.json"), self.folder / PLAN]:
            path.unlink(missing_ok=True)

    def _decode(self, part: int, command: Sequence[str], slot: int, count: Say) -> None:
        log = self.folder / f"{self._name(part, 'generate')}.log"
        rank = ("--distributed-world-size", str(self.parts), "--distributed-rank", str(part))
        shard = rank if self.parts > 1 else ()
        environment = _gpu_of(slot) if self.processes > 1 else {}
        run_program(
            "fairseq-generate", [*command, *shard], log, environment=environment, on_line=count
        )
        with log.open(encoding="utf-8") as lines:
            write_json(self._result(part), self.reader.read(line.rstrip("\n") for line in lines))

    def _name(self, part: int, stem: str) -> str:
        return stem if self.parts == 1 else f"{stem}-{part + 1}-of-{self.parts}"

    def _result(self, part: int) -> Path:
        return self.folder / f"part-{part + 1}-of-{self.parts}.json"

    def _read(self, part: int) -> dict[int, str]:
        return {int(number): text for number, text in read_json(self._result(part)).items()}

    def _counter(self, done: int) -> Say:
        """Return a function that reports every tenth of the hypotheses that go by."""
        lock = threading.Lock()

        def count(line: str) -> None:
            nonlocal done
            if self.reader.is_hypothesis(line):
                with lock:
                    done += 1
                    step = max(1, self.sentences // _STEPS)
                    if done == self.sentences or done % step == 0:
                        self.say(f"  {done} of {self.sentences}")

        return count


def _gpu_of(slot: int) -> dict[str, str]:
    """Give each of several processes a GPU of its own, as far as there are any."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [str(number) for number in range(len(hardware().get("gpus", ())))]
    gpus = [gpu for gpu in given.split(",") if gpu] if given is not None else there
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
