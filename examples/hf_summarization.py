"""Summaries through Hugging Face's Seq2SeqTrainer, with and without sharpness, and their ROUGE.

    PAIRS=$DELTASAM_DATA/cnndm/validation1000
    python examples/hf_summarization.py --train-source $PAIRS.source --train-target $PAIRS.target \
        [--method none|sam|…] [--model DIR]

DIR is a folder of Hugging Face: a ``facebook/bart-large``, say. Without it a BART of two layers
with random weights is trained, and its byte-pair encoding is learnt from the training pairs:
nothing is downloaded, and the scores are no result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.cli.options import add_number, whole_number
from deltasam_fairseq.data.aligned import Aligned, hold_out, read_aligned
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.rouge import RougeReport, rouge_scores
from deltasam_fairseq.hf import SharpnessArguments, SharpnessAwareSeq2SeqTrainer

# Those of docs/cnndm.md, as are the defaults of --beams and the lengths of summaries.
DECODING = {"length_penalty": 2.0, "no_repeat_ngram_size": 3}
ROUGE: dict[str, Any] = {"split": "sentences", "tokenization": "ptb", "like": "rouge-1.5.5"}


def small_bart(texts: Sequence[str], positions: int) -> tuple[Any, Any]:
    """Return a BART of two layers with random weights, and a tokenizer learnt from the texts."""
    bart = transformers.BartTokenizer()
    tokenizer = bart.train_new_from_iterator(texts, vocab_size=4000, show_progress=False)
    config = transformers.BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.BartForConditionalGeneration(config), tokenizer


def load(given: argparse.Namespace, train: Aligned) -> tuple[Any, Any]:
    """Load model and tokenizer of the folder, or make small ones."""
    positions = max(given.source_length, given.target_length)
    if not given.model:
        return small_bart(train.sources + train.targets, positions)
    if not given.model.is_dir():
        raise UserError(f"--model must be a folder of Hugging Face; {given.model} is none")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(given.model)
    most = getattr(model.config, "max_position_embeddings", positions)
    if positions > most:
        raise UserError(
            f"{given.model} has {most} positions, and --source-length or --target-length is "
            f"{positions}; give at most {most}"
        )
    return model, transformers.AutoTokenizer.from_pretrained(given.model)


def rows(pairs: Aligned, tokenizer: Any, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the tokens of each pair."""
    sources = tokenizer(pairs.sources, truncation=True, max_length=given.source_length)
    targets = tokenizer(text_target=pairs.targets, truncation=True, max_length=given.target_length)
    both = zip(sources["input_ids"], targets["input_ids"], strict=True)
    return [{"input_ids": source, "labels": target} for source, target in both]


def run(given: argparse.Namespace) -> RougeReport:
    """Train, summarize the pairs held out, and score the summaries."""
    pairs = read_aligned(given.train_source, given.train_target)
    train, test = hold_out(pairs, given.hold_out)
    transformers.set_seed(given.seed)  # of random weights
    model, tokenizer = load(given, train)
    trainer = SharpnessAwareSeq2SeqTrainer(
        model,
        transformers.Seq2SeqTrainingArguments(
            given.out,
            seed=given.seed,
            learning_rate=3e-5 if given.model else 2e-3,
            warmup_steps=20,
            label_smoothing_factor=0.1,
            per_device_train_batch_size=16,
            num_train_epochs=3,
            max_steps=given.max_steps or -1,
            predict_with_generate=True,
            logging_steps=10,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows(train, tokenizer, given),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model),
        sharpness=SharpnessArguments(given.method, rho=given.rho),
    )
    trainer.train()
    found = trainer.predict(
        rows(test, tokenizer, given),
        min_length=given.min_length,
        max_length=given.target_length,
        num_beams=given.beams,
        **DECODING,
    ).predictions
    found[found < 0] = tokenizer.pad_token_id
    summaries = tokenizer.batch_decode(found, skip_special_tokens=True)
    return rouge_scores(summaries, test.targets, **ROUGE)


def main(arguments: Sequence[str] | None = None) -> RougeReport:
    """Read the command line (that of the process when left out), run it, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train-source", type=Path, required=True, help="a text on each line")
    parser.add_argument("--train-target", type=Path, required=True, help="the summary of each")
    parser.add_argument("--model", type=Path, help="folder of a model with its tokenizer")
    parser.add_argument("--method", choices=METHODS, default="delta_sam")
    parser.add_argument("--rho", type=float, default=0.01)
    parser.add_argument("--max-steps", type=whole_number, help="updates; default: 3 epochs")
    add_number(parser, "--hold-out", 100, "pairs of these to test with")
    add_number(parser, "--source-length", 256, "tokens of a text; the rest is cut off")
    add_number(parser, "--target-length", 140, "the same for summaries")
    add_number(parser, "--min-length", 55, "tokens of a generated summary, at least")
    add_number(parser, "--beams", 4, "of the search")
    add_number(parser, "--seed", 1, "of weights, batches and directions")
    parser.add_argument("--out", default="runs/hf_summarization")
    given = parser.parse_args(arguments)
    if given.min_length > given.target_length:
        parser.error("--min-length must be at most --target-length")
    try:
        report = run(given)
    except UserError as error:
        parser.error(str(error))
    scores = [report.scores[name].fmeasure for name in ("rouge1", "rouge2", "rougeLsum")]
    print("| method | ROUGE-1 | ROUGE-2 | ROUGE-L |\n| --- | --: | --: | --: |")
    print(f"| {given.method} | {' | '.join(f'{score:.2f}' for score in scores)} |")
    print(f"{report.n} pairs held out, {report.signature}")
    return report


if __name__ == "__main__":
    main()
