"""How long may sentences be before the exact per-instance step costs much more than SAM's?

The engine keeps a sentence's gradient of a linear layer as thin factors, whose products cost
T² (a + b), or forms it as a matrix, which costs T a b. So this is a question of the length T.
Every length is measured with factors always, with formed matrices always, and with the plan's
own choice, in turns with a SAM step. The answer is in docs/per_instance.md.

    python -m scripts.studies.length --width 384 --layers 1 --threads 1 --clock processor
    python -m scripts.studies.length --show scripts/studies/records/length_*.json

``--json`` prints the record, ``--plot FILE`` draws it. Minutes; needs no fairseq.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltasam_fairseq.benchmarks.instruments import no_collection, timed
from deltasam_fairseq.benchmarks.record import rounded_spread
from deltasam_fairseq.benchmarks.variants import CLOCKS, Times
from deltasam_fairseq.core import sam_step
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.figures import check_figure, new_figure
from deltasam_fairseq.markdown import markdown_lines
from deltasam_fairseq.per_instance import Engine, Plan, batched_per_instance_step
from deltasam_fairseq.per_instance.factors import Form, Outer
from scripts.studies.shared import Record, number, numbers, run, say, study_parser

RHO = 0.05


class FormedPlan(Plan):
    """Every sentence's gradient of every linear layer's weight is formed."""

    def forms_gradients(self, forms: Sequence[Form], shape: torch.Size) -> bool:  # noqa: D102
        return any(isinstance(form, Outer) for form in forms)


#: By name, in the order in which they take turns.
STRATEGIES = {"thin": Plan(crossover=math.inf), "formed": FormedPlan(), "plan": Plan()}
LABELS = {"thin": "thin products", "formed": "formed matrices", "plan": "the engine's choice"}
COLOURS = {"thin": "#1b4f72", "formed": "#d95f02", "plan": "#117a65"}


class Block(nn.Module):
    """A transformer's layer whose attention calls its projections as modules."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the next layer's input, shape ``(N, T, width)`` like this one's."""
        count, length, width = hidden.shape
        query, key, value = (
            p(hidden).view(count, length, self.heads, -1).transpose(1, 2)
            for p in list(self.projections)[:3]
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        mixed = self.projections[3](mixed.transpose(1, 2).reshape(count, length, width))
        hidden = self.norms[0](hidden + mixed)
        normed: Tensor = self.norms[1](hidden + self.feed_forward(hidden))
        return normed


class Encoder(nn.Module):
    """Words, layers, and two classes from the first token."""

    def __init__(self, *, layers: int, width: int, heads: int, words: int) -> None:
        super().__init__()
        self.words = words
        blocks = [Block(width, heads) for _ in range(layers)]
        self.layers = nn.Sequential(nn.Embedding(words, width), *blocks)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, shape ``(N, 2)``, of tokens of shape ``(N, T)``."""
        logits: Tensor = self.head(self.layers(tokens)[:, 0])
        return logits


class Problem:
    """An encoder, a batch of random words and its losses.

    Args:
        encoder: The model.
        sentences: Size of the batch.
        tokens: Of each sentence.
        seed: Of the words.
    """

    def __init__(self, encoder: Encoder, *, sentences: int, tokens: int, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.encoder = encoder
        self.params = list(encoder.parameters())
        device = self.params[0].device
        shape = (sentences, tokens)
        self.tokens = torch.randint(encoder.words, shape, generator=draw).to(device)
        self.classes = torch.arange(sentences, device=device) % 2

    def losses(self) -> Tensor:
        """Run one forward pass; one loss per sentence, shape ``(N,)``, nats."""
        return nn.functional.cross_entropy(
            self.encoder(self.tokens), self.classes, reduction="none"
        )


def take_turns(
    problem: Problem, strategies: Mapping[str, Plan], *, repeats: int, warm_up: int = 2
) -> dict[str, list[Times]]:
    """Run a SAM step and a batched step of each strategy, round after round.

    Args:
        problem: Model, batch and losses; left without gradients.
        strategies: Plans of the engine, by name.
        repeats: Rounds.
        warm_up: Steps of each before the first round; two batches settle where the
            sentences are.

    Returns:
        By ``sam`` and strategy, one entry per round.
    """
    steps: dict[str, Callable[[], object]] = {
        "sam": lambda: sam_step(problem.params, problem.losses, rho=RHO)
    }
    for name, chosen in strategies.items():
        engine = Engine(problem.encoder, plan=chosen)
        steps[name] = partial(batched_per_instance_step, engine, problem.losses, rho=RHO)
    for step in steps.values():
        for _ in range(warm_up):
            step()
    found: dict[str, list[Times]] = {name: [] for name in steps}
    with no_collection():
        for _ in range(repeats):
            gc.collect()
            for name, step in steps.items():
                problem.encoder.zero_grad()
                times, _ = timed(step, problem.tokens.device)
                found[name].append(times)
    problem.encoder.zero_grad()
    return found


def ratios(found: Mapping[str, Sequence[Times]], strategy: str, clock: str) -> list[float]:
    """Divide a strategy's times by SAM's, round by round."""
    pairs = zip(found[strategy], found["sam"], strict=True)
    return [getattr(mine, clock) / getattr(sams, clock) for mine, sams in pairs]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every length, and draw the figure if one is wanted."""
    if args.width % args.heads:
        raise UserError(f"--width {args.width} is not divisible by --heads {args.heads}")
    if max(args.lengths) > args.batch_tokens:
        raise UserError(f"--lengths: {max(args.lengths)} is above --batch-tokens")
    if args.device == "cuda" and args.clock == "processor":
        raise UserError("--clock processor: with --device cuda the GPU does the work")
    if args.plot:
        check_figure(args.plot)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    encoder = Encoder(layers=args.layers, width=args.width, heads=args.heads, words=args.words)
    encoder.to(args.device)
    lengths = []
    for tokens in args.lengths:
        sentences = args.batch_tokens // tokens
        problem = Problem(encoder, sentences=sentences, tokens=tokens, seed=args.seed)
        found = take_turns(problem, STRATEGIES, repeats=args.repeats)
        clocks = {
            clock: {
                "seconds": {
                    name: rounded_spread([getattr(t, clock) for t in times])
                    for name, times in found.items()
                },
                "ratios": {s: rounded_spread(ratios(found, s, clock)) for s in STRATEGIES},
            }
            for clock in CLOCKS
        }
        lengths.append({"tokens": tokens, "sentences": sentences, "clocks": clocks})
        say(f"{sentences} x {tokens} tokens: {args.repeats} rounds")
    if args.plot:
        draw({"settings": vars(args), "lengths": lengths}, args.plot)
    return {"lengths": lengths}


def tables(records: Sequence[Record]) -> str:
    """Lay the median ratios to SAM out, a row per width and strategy."""
    shapes = [(one["sentences"], one["tokens"]) for one in records[0]["lengths"]]
    heads = ["width", "sentences × tokens", *(f"{n} × {t:,}" for n, t in shapes)]
    rows = [
        [
            str(record["settings"]["width"]) if name == "thin" else "",
            label,
            *(f"{cell['median']:.2f}" for cell in _cells(record, name)),
        ]
        for record in records
        for name, label in LABELS.items()
    ]
    return "\n".join(markdown_lines(heads, ["---"] * len(heads), rows))


def _cells(record: Record, strategy: str) -> list[Mapping[str, float]]:
    clock = record["settings"]["clock"]
    return [one["clocks"][clock]["ratios"][strategy] for one in record["lengths"]]


def draw(record: Record, out: Path) -> None:
    """Draw each strategy's ratio to SAM against the length, medians and quartiles."""
    settings = record["settings"]
    figure = new_figure(7, 4)
    axis = figure.subplots()
    tokens = [one["tokens"] for one in record["lengths"]]
    for name, colour in COLOURS.items():
        medians, low, high = (
            [cell[key] for cell in _cells(record, name)] for key in ("median", "q1", "q3")
        )
        style = "--" if name == "plan" else "-"
        axis.plot(
            tokens, medians, style, marker="o", markersize=4, color=colour, label=LABELS[name]
        )
        axis.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(1, color="#444444", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(tokens, [str(t) for t in tokens])
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    title = f"Batched per-instance step over SAM step, width {settings['width']}"
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(f"tokens of a sentence, {settings['batch_tokens']} tokens in a batch")
    axis.set_ylabel(f"ratio of {settings['clock']} times")
    axis.grid(color="#e5e5e5", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    parser = study_parser("length", __doc__)
    lengths = numbers(number(int, 1))
    for name, default, meaning in (
        ("width", 384, "of the layers; inner layers have four times as much"),
        ("heads", 12, "of each attention"),
        ("layers", 2, "of the model"),
        ("words", 8000, "of the vocabulary"),
        ("batch-tokens", 1024, "tokens of every batch: the longer the sentences, the fewer"),
        ("repeats", 7, "rounds"),
        ("threads", 1, "of one operator"),
        ("seed", 1, "of words and weights"),
    ):
        parser.add_argument(
            f"--{name}",
            type=number(int, 1),
            default=default,
            metavar="N",
            help=f"{meaning} (%(default)s)",
        )
    parser.add_argument(
        "--lengths",
        type=lengths,
        default="16,32,64,128,256,512,1024",
        metavar="A,B,…",
        help="tokens of a sentence (%(default)s)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="elapsed",
        help="processor time is for one thread on a busy machine (%(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .png, .pdf or .svg")
    run("length", parser, measure, tables, arguments)


if __name__ == "__main__":
    main()
