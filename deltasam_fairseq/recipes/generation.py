"""Running fairseq-generate on a split and putting its output in order."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.pieces import decode
from deltasam_fairseq.data.prepared import TARGET, PreparedData
from deltasam_fairseq.data.process import failure, require_fairseq, run_logged
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.command import generate_command, merge_flags
from deltasam_fairseq.recipes.run_folder import RunFolder

MARKER = "generated.json"
HYPOTHESES = "hypotheses.txt"
REFERENCES = "references.txt"

_HYPOTHESIS = re.compile(r"^H-(\d+)\t[^\t]*\t(.*)$")
_STEPS = 10


@dataclass(frozen=True)
class Generated:
    """What a checkpoint made of a split.

    Args:
        folder: Holds ``hypotheses.txt``, ``references.txt``, ``generate.log`` and
            ``generated.json``, which is written last.
        hypotheses: Plain text, in the order of the split.
        references: Plain text.
        facts: Content of ``generated.json``.
    """

    folder: Path
    hypotheses: list[str]
    references: list[str]
    facts: dict[str, Any]


def generate(
    recipe: Recipe,
    data: PreparedData,
    run: RunFolder,
    split: str,
    *,
    overrides: Sequence[str] = (),
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Generated:
    """Decode a split with a run's best checkpoint, or find that it is done already.

    Args:
        recipe: How to decode.
        data: What the run was trained on.
        run: The run.
        split: ``test`` or ``valid``.
        overrides: Further flags of fairseq-generate.
        force: Whether to replace results of another checkpoint or of other flags.
        say: Told what happens, line by line.

    Returns:
        Hypotheses and references.

    Raises:
        UserError: If there is no checkpoint, if there are other results and
            ``force`` is not given, or if fairseq-generate fails.
    """
    checkpoint = run.best_checkpoint
    if not checkpoint.is_file():
        raise UserError(
            f"{checkpoint}: no such file; train first (it is written after the first validation)"
        )
    folder = run.results(split)
    references = data.texts(split, TARGET)
    command = generate_command(
        recipe, data=data.binary, checkpoint=checkpoint, split=split, overrides=overrides
    )
    wanted = {
        "checkpoint_sha256": sha256(checkpoint),
        "data_sha256": data.sha256,
        "flags": merge_flags(recipe.generation, overrides),
    }
    facts = _finished(folder, wanted, force=force)
    if facts is not None:
        say(f"{folder}: generated before from the same checkpoint; reusing it")
        return Generated(folder, _read(folder / HYPOTHESES), references, facts)
    require_fairseq()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    say(f"decoding {len(references)} {split} sentences with {checkpoint} …")
    log = folder / "generate.log"
    began = time.monotonic()
    status = run_logged(command, log, on_line=_counter(len(references), say))
    if status:
        raise UserError(failure("fairseq-generate", status, log))
    with log.open(encoding="utf-8") as lines:
        hypotheses = in_order(lines, count=len(references))
    _write(folder / HYPOTHESES, hypotheses)
    _write(folder / REFERENCES, references)
    facts = {**wanted, "seconds": round(time.monotonic() - began, 1), "command": command}
    (folder / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return Generated(folder, hypotheses, references, facts)


def in_order(lines: Iterable[str], *, count: int) -> list[str]:
    """Pick the best hypotheses out of fairseq-generate's output, in the order of the data.

    fairseq decodes by length; the numbers behind ``H-`` say what belongs where.

    Args:
        lines: The output.
        count: Number of sentences there should be.

    Returns:
        Plain text, one entry per sentence.

    Raises:
        UserError: If a sentence is missing.
    """
    found: dict[int, str] = {}
    for match in filter(None, map(_HYPOTHESIS.match, lines)):
        found.setdefault(int(match.group(1)), decode(match.group(2)))
    missing = sorted(set(range(count)).difference(found))
    if missing:
        raise UserError(
            f"fairseq-generate left {len(missing)} of {count} sentences out, the first is number "
            f"{missing[0] + 1}; they may be longer than the model's positions: prepare the data "
            "with a smaller --max-source-tokens"
        )
    return [found[index] for index in range(count)]


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _finished(folder: Path, wanted: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    different = [name for name, value in wanted.items() if facts[name] != value]
    if not different:
        return facts
    if force:
        return None
    names = {
        "checkpoint_sha256": "another checkpoint",
        "data_sha256": "other data",
        "flags": "other decoding flags",
    }
    raise UserError(
        f"{folder} holds results of {' and '.join(names[name] for name in different)}; "
        "pass --force to replace them"
    )


def _counter(total: int, say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that reports every tenth of the hypotheses that go by."""
    done = 0

    def count(line: str) -> None:
        nonlocal done
        if _HYPOTHESIS.match(line):
            done += 1
            if done == total or done % max(1, total // _STEPS) == 0:
                say(f"  {done} of {total}")

    return count


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _write(path: Path, lines: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
