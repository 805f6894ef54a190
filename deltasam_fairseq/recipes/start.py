"""What a run starts from, checked before fairseq is called.

fairseq itself only logs that there is no checkpoint where ``--restore-file``
points, and then trains a model with random weights for as many updates.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltasam_fairseq.data.bart import ARCHITECTURES, PreparedBart
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.data.prepared_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Flags, Recipe
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.surroundings import gpus

_FAIRSEQS_OWN = "checkpoint_last.pt"


def start_flags(recipe: Recipe, source: PreparedBart | PreparedEncoder | None) -> Flags:
    """Return the flags of a run's first start.

    Args:
        recipe: What to train.
        source: What to start from, or none for random weights.

    Returns:
        The recipe's own, and ``restore-file``.

    Raises:
        UserError: If the recipe needs a BART and there is none, or the other way round.
    """
    if recipe.models:
        if not isinstance(source, PreparedEncoder):
            raise UserError(
                f"the recipe {recipe.name} fine-tunes an encoder: give --model NAME, and --encoder "
                "DIR if it is not in models/NAME"
            )
        return {"restore-file": str(source.checkpoint), **recipe.start}
    if recipe.starts_from_bart and source is None:
        raise UserError(
            f"the recipe {recipe.name} fine-tunes BART: give --bart DIR, made by deltasam prepare "
            "bart; without a checkpoint fairseq would train random weights"
        )
    if source is not None and not recipe.starts_from_bart:
        raise UserError(f"the recipe {recipe.name} trains from scratch; leave --bart out")
    return {} if source is None else {"restore-file": str(source.checkpoint), **recipe.start}


def check_data(recipe: Recipe, data: PreparedData | PreparedSentences) -> None:
    """Check that data were prepared for the task of a recipe.

    Args:
        recipe: What to train.
        data: What it trains on.

    Raises:
        UserError: If they are of another kind or another task.
    """
    wanted = recipe.sentences.name if recipe.sentences else None
    found = data.facts["task"] if isinstance(data, PreparedSentences) else None
    if wanted != found:
        raise UserError(
            f"{data.path} holds {found or 'texts to generate'}, the recipe {recipe.name} is for "
            f"{wanted or 'texts to generate'}; give its own data with --data"
        )


def check_start(
    command: Sequence[str],
    source: PreparedBart | PreparedEncoder | None,
    data: PreparedData | PreparedSentences,
) -> None:
    """Check that a checkpoint exists and fits model and data.

    Args:
        command: The whole call of fairseq-train.
        source: What it starts from, or none.
        data: What it trains on.

    Raises:
        UserError: If ``--restore-file`` is missing, if the checkpoint is another model's
            or another dictionary's, or if micro-batches are shorter than articles.
    """
    flags = flag_values(command)
    restored = flags.get("restore-file", _FAIRSEQS_OWN)
    if restored != _FAIRSEQS_OWN and not Path(restored).is_file():
        raise UserError(
            f"--restore-file {restored}: no such file; fairseq would train from scratch"
        )
    if source is None:
        return
    if restored != str(source.checkpoint):
        kind = "encoder" if isinstance(source, PreparedEncoder) else "bart"
        raise UserError(
            f"--restore-file {restored} would replace the checkpoint of --{kind} {source.path}; "
            f"give one of them: --{kind}, after deltasam prepare {kind}"
        )
    if isinstance(source, PreparedEncoder):
        _check_encoder(source, data, flags)
    else:
        _check_bart(source, data, flags)


def cpu_note(recipe: Recipe, command: Sequence[str]) -> str:
    """Say what to expect where a recipe that is sized for a GPU runs on a CPU.

    Args:
        recipe: What to train, for the model that is trained.
        command: The whole call of fairseq-train.

    Returns:
        One line; empty if a GPU is used, or the recipe is small enough for a CPU.
    """
    flags = flag_values(command)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    if not recipe.on_cpu or not ("cpu" in flags or hidden or not gpus()):
        return ""
    half = (
        "; half precision needs a GPU: --precision fp32" if flags.keys() & {"fp16", "bf16"} else ""
    )
    return f"note: {recipe.name} is sized for a GPU, and none is used: {recipe.on_cpu}{half}"


def _check_encoder(
    encoder: PreparedEncoder, data: PreparedData | PreparedSentences, flags: Mapping[str, str]
) -> None:
    encoder.require_architecture(flags.get("arch", ""), flags)
    wanted = {"dict.txt": encoder.facts["dict_sha256"], **encoder.cutting}
    for name, value in wanted.items():
        if data.facts["settings"].get(name) != value:
            kind = "vocabulary" if name == "dict.txt" else f"value of {name}"
            raise UserError(
                f"{data.path} was prepared with another {kind} than that of {encoder.path}; "
                f"prepare it with: deltasam prepare RECIPE --encoder {encoder.path} … --force"
            )
    head = encoder.facts["head"]
    if (
        head["tasks"]
        and int(flags.get("num-classes", 2)) == len(head["classes"])
        and data.facts["task"] not in head["tasks"]
    ):
        raise UserError(
            f"{encoder.path} has a head for {' and '.join(head['tasks'])}, with as many classes as "
            f"{data.facts['task']}, which would start from it; make it without: deltasam prepare "
            f"encoder {encoder.facts['source']} --new-head --out {encoder.path} --force"
        )


def _check_bart(
    bart: PreparedBart, data: PreparedData | PreparedSentences, flags: Mapping[str, str]
) -> None:
    sizes = ARCHITECTURES.get(flags.get("arch", ""))
    if sizes is None:
        raise UserError(
            f"--arch {flags.get('arch')} is no BART; known: "
            f"{', '.join(name for name in ARCHITECTURES if name.startswith('bart'))}"
        )
    wanted = {name: flags.get(name, value) for name, value in sizes.items()}
    bart.require_sizes(wanted)
    positions = int(wanted["max-source-positions"])
    if int(flags.get("max-tokens", positions)) < positions:
        raise UserError(
            f"--max-tokens {flags['max-tokens']} is less than the {positions} tokens of the "
            "longest articles; fairseq would leave those out of the training. Use "
            f"--max-tokens {positions} or more"
        )
    if isinstance(data, PreparedSentences) or not data.is_gpt2:
        raise UserError(
            f"{data.path} is not in GPT-2's BPE, which BART needs; make it with: deltasam prepare "
            "cnndm"
        )
    bart.require_dictionary(data.facts["settings"]["dict.txt"], data.facts["pieces"])
