"""MRPC through Hugging Face's Trainer, with and without sharpness.

    python examples/hf_glue.py --data $DELTASAM_DATA/glue --model DIR [--method none|sam|…]

DIR is a folder of Hugging Face: a MiniLM (``all-MiniLM-L6-v2``, say) or any other encoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.data.sentence_task import read_rows
from deltasam_fairseq.hf import SharpnessArguments, SharpnessAwareTrainer

TASK = GLUE["mrpc"]


def examples(folder: Path, split: str, tokenizer: Any, most: int | None) -> list[dict[str, Any]]:
    """Read a split of MRPC.

    Args:
        folder: The folder that holds ``MRPC``.
        split: ``train`` or ``valid``.
        tokenizer: Of the model.
        most: How many rows to take; all when left out.

    Returns:
        Tokens and label of each pair.
    """
    found = TASK.split(split)
    rows = read_rows(folder / TASK.folder / found.file, TASK, found, skip=split == "train")
    first, second = (texts[:most] for texts in rows.texts)
    tokens = tokenizer(first, second, truncation=True, max_length=128)
    labels = [TASK.classes.index(label) for label in (rows.labels or [])[:most]]
    return [
        {**{name: values[i] for name, values in tokens.items()}, "labels": label}
        for i, label in enumerate(labels)
    ]


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train and evaluate.

    Args:
        arguments: The command line; that of the process when left out.

    Returns:
        The Trainer's metrics on the validation set.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MRPC")
    parser.add_argument("--model", required=True, help="folder of a model with its tokenizer")
    parser.add_argument("--method", choices=METHODS, default="per_instance")
    parser.add_argument("--rho", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=-1, help="updates; default: 3 epochs")
    parser.add_argument("--rows", type=int, help="of each split; default: all")
    parser.add_argument("--out", default="runs/hf_mrpc")
    given = parser.parse_args(arguments)
    transformers.set_seed(given.seed)  # of the new head
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(given.model)
    trainer = SharpnessAwareTrainer(
        model,
        transformers.TrainingArguments(
            given.out,
            seed=given.seed,
            learning_rate=5e-5,
            per_device_train_batch_size=32,
            num_train_epochs=3,
            max_steps=given.max_steps,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=examples(given.data, "train", tokenizer, given.rows),
        eval_dataset=examples(given.data, "valid", tokenizer, given.rows),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p[0].argmax(1) == p[1]).mean())},
        sharpness=SharpnessArguments(given.method, rho=given.rho),
    )
    trainer.train()
    found: dict[str, float] = trainer.evaluate()
    print(f"{given.method}: accuracy {100 * found['eval_accuracy']:.2f} on {TASK.name}'s dev set")
    return found


if __name__ == "__main__":
    main()
