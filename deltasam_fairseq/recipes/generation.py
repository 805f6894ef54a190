"""Running fairseq-generate on a split and putting its output in order."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.data.prepared import TARGET, PreparedData
from deltasam_fairseq.data.process import Say, require_fairseq
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import file_sha256, read_json, write_json, write_lines
from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.command import generate_command, merge_flags
from deltasam_fairseq.recipes.evaluation import EvaluationOptions
from deltasam_fairseq.recipes.hypotheses import GPT2, SENTENCEPIECE, in_order
from deltasam_fairseq.recipes.methods import Flags
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.shards import Shards

MARKER = "generated.json"
HYPOTHESES = "hypotheses.txt"
REFERENCES = "references.txt"


@dataclass(frozen=True)
class Generated:
    """What a checkpoint made of a split, in its order; ``facts`` are in ``generated.json``."""

    folder: Path
    hypotheses: list[str]
    references: list[str]
    facts: dict[str, Any]


def generate(
    recipe: Recipe,
    data: PreparedData,
    run: RunFolder,
    split: str,
    options: EvaluationOptions,
    *,
    say: Say = print,
) -> Generated:
    """Decode a split with a run's best checkpoint, or find that it is done already.

    Parts that a broken-off call has finished are kept.

    Returns:
        Hypotheses and references.
    """
    checkpoint = run.require_best_checkpoint()
    folder = run.results(split)
    references = data.texts(split, TARGET)
    choices = options.decoding()
    bpe = _bpe_flags(data) if data.is_gpt2 else {}
    command = generate_command(
        recipe,
        data=data.binary,
        checkpoint=checkpoint,
        split=split,
        flags={**choices, **bpe},
        overrides=options.overrides,
    )
    wanted = {
        "checkpoint_sha256": file_sha256(checkpoint),
        "data_sha256": data.sha256,
        "flags": merge_flags({**recipe.generation, **choices}, options.overrides),
    }
    facts = _finished(folder, wanted, force=options.force)
    if facts is not None:
        say(f"{folder}: generated before from the same checkpoint; reusing it")
        hypotheses = (folder / HYPOTHESES).read_text(encoding="utf-8").split("\n")[:-1]
        return Generated(folder, hypotheses, references, facts)
    require_fairseq()
    shards = Shards(
        folder,
        wanted,
        len(references),
        options.processes,
        GPT2 if data.is_gpt2 else SENTENCEPIECE,
        say,
    )
    (folder / MARKER).unlink(missing_ok=True)
    say(f"decoding {len(references)} {split} sentences with {checkpoint} …")
    began = time.monotonic()
    hypotheses = in_order(shards.run(command), count=len(references))
    write_lines(folder / HYPOTHESES, hypotheses)
    write_lines(folder / REFERENCES, references)
    facts = {**wanted, "seconds": round(time.monotonic() - began, 1), "command": command}
    write_json(folder / MARKER, facts)
    shards.discard()
    return Generated(folder, hypotheses, references, facts)


def _bpe_flags(data: PreparedData) -> Flags:
    return {
        "bpe": "deltasam_gpt2",
        "gpt2-encoder-json": str(data.gpt2("encoder.json")),
        "gpt2-vocab-bpe": str(data.gpt2("vocab.bpe")),
    }


def _finished(folder: Path, wanted: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    try:
        facts = read_json(folder / MARKER)
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
