"""Do fairseq and Hugging Face's Trainer train alike, and what does an update cost in each?

One checkpoint of fairseq, with its new head, is exported to a folder of Hugging Face. Both train
it on the same batches in the same order, without dropout, and take turns update by update, so that
both have the same machine. The answer is in docs/hugging_face.md.

    python -m scripts.studies.hf_parity --data DIR --model ENCODER --json > RECORD
    python -m scripts.studies.hf_parity --show RECORD

ENCODER is made by ``deltasam prepare encoder``, DIR by ``deltasam prepare glue/TASK`` with it, of a
task with two classes. Needs the extra ``transformers``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fairseq.logging import metrics

from deltasam_fairseq.benchmarks.instruments import no_collection, timed
from deltasam_fairseq.benchmarks.trainers import build_trainer, flags_of, quiet, size_of
from deltasam_fairseq.benchmarks.variants import CLOCKS, Times
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.conversion.export import ExportRequest, export
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.fairseq_plugin.models.bert import segments
from deltasam_fairseq.markdown import markdown_lines
from scripts.studies.shared import Record, add_counts, number, run, say, study_parser

CPU = torch.device("cpu")
METHODS = {
    "none": "none",
    "sam": "sam",
    "per_instance": "per_instance --sam-per-instance-engine batched",
}
NAMES = {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]"}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train with every method."""
    if args.data is None or args.model is None:
        raise UserError("give the data and the model: --data DIR --model ENCODER")
    torch.set_num_threads(args.threads)
    task = PreparedSentences.load(args.data).holds
    sizes = PreparedEncoder.load(args.model).facts["sizes"]
    calm = "--dropout 0 --attention-dropout 0 --pooler-dropout 0 --clip-norm 0 --sam-inner adam"
    flags = " ".join([calm, *(f"--{name} {size}" for name, size in sizes.items())])
    found = {}
    for method, own in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[method] = _both(args, f"{own} --sam-rho {args.rho} {flags}", method, Path(folder))
        say(method)
    each = {key: {method: one[key] for method, one in found.items()} for key in found["sam"]}
    return {"task": task, "flags": flags, **each}


def _both(args: argparse.Namespace, own: str, method: str, folder: Path) -> dict[str, Any]:
    """Train with one method in both."""
    workload = WORKLOADS["minilm"]["default"].ordered(sentences=args.batch_size)
    flags = [*flags_of(workload, own, args.seed, CPU), "--lr", str(args.lr)]
    with quiet():
        trainer = build_trainer(args.data / "bin", flags)
        trainer.load_checkpoint(
            str(args.model / "model.pt"), reset_optimizer=True, reset_lr_scheduler=True
        )
        trainer.consolidate_optimizer()
        del trainer.save_checkpoint  # which build_trainer takes away
        trainer.save_checkpoint(str(folder / "model.pt"), {"train_iterator": {"epoch": 1}})
        request = ExportRequest(folder / "model.pt", args.model, data=args.data)
        export(folder / "hf", request, say=lambda _: None)
        epoch = trainer.task.get_batch_iterator(
            trainer.task.dataset("train"),
            max_sentences=args.batch_size,
            required_batch_size_multiple=1,
            seed=args.seed,
        ).next_epoch_itr()
        batches = list(islice(epoch, args.updates))
        if sum(len(batch["id"]) for batch in batches) < args.updates * args.batch_size:
            raise UserError(f"--updates {args.updates}: an epoch of {args.data} is shorter")
        losses, seconds = _in_turns(args, method, folder, trainer, batches)
    return {"losses": losses, "seconds": seconds, "size": size_of(batches)}


def _in_turns(
    args: argparse.Namespace, method: str, folder: Path, trainer: Any, batches: Sequence[Any]
) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]]]:
    """Train the exported model, each update behind that of fairseq on the same batch."""
    import transformers  # noqa: PLC0415

    from deltasam_fairseq.hf import SharpnessArguments, SharpnessAwareTrainer  # noqa: PLC0415

    losses: dict[str, list[float]] = {"fairseq": [], "trainer": []}
    seconds: dict[str, dict[str, list[float]]] = {c: {n: [] for n in losses} for c in CLOCKS}

    def note(name: str, times: Times) -> None:
        for clock, value in times._asdict().items():
            seconds[clock][name].append(float(f"{value:.6g}"))

    class Turns(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            with metrics.aggregate(new_root=True) as seen:
                times, _ = timed(partial(trainer.train_step, [batches[state.global_step]]), CPU)
            losses["fairseq"].append(math.log(2) * float(seen["loss"].avg))
            note("fairseq", times)
            self.begun = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended = time.perf_counter(), time.process_time()
            note("trainer", Times(*(b - a for a, b in zip(self.begun, ended, strict=True))))

    class Ordered(SharpnessAwareTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    numbers = _numbers(trainer.task.source_dictionary, folder / "hf" / "vocab.txt")
    hugging_face = Ordered(
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "hf"),
        transformers.TrainingArguments(
            str(folder),
            per_device_train_batch_size=args.batch_size,
            max_steps=args.updates,
            learning_rate=args.lr,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[row for batch in batches for row in _rows(batch, numbers)],
        sharpness=SharpnessArguments(method, rho=args.rho, per_instance_engine="batched"),
        callbacks=[Turns],
    )
    hugging_face.remove_callback(transformers.PrinterCallback)
    with no_collection():
        hugging_face.train()
    losses["trainer"] = [line["loss"] for line in hugging_face.state.log_history if "loss" in line]
    return losses, seconds


def _numbers(words: Any, vocabulary: Path) -> torch.Tensor:
    """Return the number of each of fairseq's words in a vocabulary of Hugging Face."""
    lines = vocabulary.read_text(encoding="utf-8").split("\n")
    places = {word: number for number, word in enumerate(lines)}
    return torch.tensor([places.get(NAMES.get(word, word), -1) for word in words.symbols])


def _rows(batch: Any, numbers: torch.Tensor) -> list[dict[str, Any]]:
    """Return the sentences of a batch, with its padding, as the Trainer takes them."""
    tokens, pad = batch["net_input"]["src_tokens"], 1
    columns = {
        "input_ids": numbers[tokens],
        "attention_mask": tokens.ne(pad).long(),
        "token_type_ids": segments(tokens, separator=2, padding=pad),
        "labels": batch["target"].view(-1),
    }
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def tables(records: Sequence[Record]) -> str:
    """Lay records out, one table each."""
    return "\n\n".join(_table(record) for record in records)


def _table(record: Record) -> str:
    settings = record["settings"]
    head = (
        "method",
        "first and last loss",
        "largest difference",
        "mean difference",
        "fairseq",
        "Trainer",
        "Trainer / fairseq",
    )
    rows = []
    for method, losses in record["losses"].items():
        pairs = list(zip(losses["fairseq"], losses["trainer"], strict=True))
        apart = [abs(one - other) for one, other in pairs]
        spent = record["seconds"][method][settings["clock"]]
        # The first update of each also makes what later ones keep.
        fairseq, trainer = (statistics.median(spent[n][1:]) for n in ("fairseq", "trainer"))
        rows.append(
            (
                f"`{method}`",
                f"{pairs[0][0]:.4f}, {pairs[-1][0]:.4f}",
                f"{max(apart):.1e}",
                f"{statistics.mean(apart):.1e}",
                f"{1000 * fairseq:.0f} ms",
                f"{1000 * trainer:.0f} ms",
                f"{trainer / fairseq:.2f}",
            )
        )
    caption = (
        f"{record['task']}, {settings['updates']} updates on batches of {settings['batch_size']}, "
        f"lr {settings['lr']:g}, rho {settings['rho']:g}, seed {settings['seed']}; medians of "
        f"{settings['clock']} time, {settings['threads']} thread. "
        f"{record['hardware']['processor']}, torch {record['versions']['torch']}."
    )
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join([caption, "", *markdown_lines(head, rule, rows)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = study_parser("hf_parity", __doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared for the model")
    parser.add_argument("--model", type=Path, metavar="ENCODER", help="a prepared BERT")
    counts = (
        ("updates", 2, 20, "of the run"),
        ("batch-size", 1, 16, "sentences in a batch"),
        ("threads", 1, 1, "of one operator"),
        ("seed", 0, 1, "of the new head and the order of the sentences"),
    )
    add_counts(parser, counts)
    above = number(float, 0, above=True)
    parser.add_argument("--lr", type=above, default=5e-5, help="(%(default)s)")
    parser.add_argument("--rho", type=above, default=0.05, help="(%(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="processor", help="(%(default)s)")
    run("hf_parity", parser, measure, tables, arguments)


if __name__ == "__main__":
    main()
