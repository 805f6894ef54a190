"""Make summary.md of what scripts/gpu.sh has found so far.

    python scripts/gpu_report.py OUT        reads OUT/results.jsonl, writes OUT/summary.md

Standard library only.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Step = dict[str, Any]


def main(folder: Path) -> None:
    """Write the summary.

    Args:
        folder: Of the results.
    """
    text = (folder / "results.jsonl").read_text(encoding="utf-8")
    # A line that the end of time has cut is none.
    steps = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    part = folder / "summary.md.part"
    part.write_text("\n".join(lines(steps)) + "\n", encoding="utf-8")
    part.replace(folder / "summary.md")


def lines(steps: list[Step]) -> Iterator[str]:
    """Write everything down, in the order of the parts.

    Args:
        steps: Of ``results.jsonl``.

    Yields:
        Lines of Markdown.
    """
    begun = of(steps, "begun")[-1]
    ended = of(steps, "ended")
    state = ended[-1].get("failed", "to its end") if ended else "still running, or killed"
    kind = "A rehearsal" if begun["rehearsal"] else "A run"
    yield f"{kind} of {begun['minutes']:g} minutes: {state} at {steps[-1]['at']:g} s.\n"
    for step in of(steps, "device"):
        found = step["device"]
        gpus = ", ".join(found.get("gpus", ())) or "no GPU"
        memory = found.get("memory_bytes", 0) / 2**30
        yield f"{gpus}, {memory:.0f} GiB, {step['cores']} cores; Python {step['python']}, " + (
            f"torch {found.get('torch')}, CUDA {found.get('cuda')}."
        )
    for step in of(steps, "install"):
        yield f"{step['wheels']} wheels of commit {step['commit']} installed in " + (
            f"{step['seconds']} s, status {step['status']}."
        )
    yield from tests(of(steps, "tests"))
    yield from timings(of(steps, "timing"))
    yield from trained(of(steps, "cell"), of(steps, "cells"))


def of(steps: list[Step], name: str) -> list[Step]:
    """Return the steps of one name."""
    return [step for step in steps if step["step"] == name]


def tests(steps: list[Step]) -> Iterator[str]:
    """Count tests, and name those that failed."""
    for step in steps:
        yield "\n## Tests of the device\n"
        if "finished" not in step:
            yield step["failed"]
            continue
        names = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL")
        counts = ", ".join(f"{step[name]} {name.lower()}" for name in names if name in step)
        end = "finished" if step["finished"] else "cut off"
        yield f"{counts or 'none'}; {end} after {step['seconds']:g} s."
        yield from (f"- FAILED {test}" for test in step["wrong"])
        if step["end"]:
            yield f"\n```text\n{step['end']}\n```"


def timings(steps: list[Step]) -> Iterator[str]:
    """Lay the benchmark's records out."""
    if not steps:
        return
    yield "\n## Time and memory of an update\n"
    heads = ["model", "method", "ms, median (quartiles)", "tokens / s", "/ none", "/ sam"]
    heads += ["peak, GiB", "waits for Python", "rounds"]
    yield row(heads)
    yield row(["---"] * len(heads))
    for step in steps:
        if step.get("record") is None:
            # The first line of a failure is enough here; the log has all of it.
            yield row([step.get("name", ""), step.get("methods", ""), step["failed"]] + [""] * 6)
            continue
        (model,) = step["record"]["models"]
        times = model["clocks"]["elapsed"]
        for method, seconds in times["seconds"].items():
            ratios = [
                f"{times['ratios'][base][method]['median']:.2f}" if base in times["ratios"] else ""
                for base in ("none", "sam")
            ]
            ms = [f"{1000 * seconds[name]:.1f}" for name in ("median", "q1", "q3")]
            skipped = model["skipped"][method]
            yield row(
                [
                    step["name"],
                    f"`{method}`",
                    f"{ms[0]} ({ms[1]} – {ms[2]})",
                    f"{times['tokens_per_second'][method]:,.0f}",
                    *ratios,
                    f"{model['memory']['peak_bytes'][method] / 2**30:.2f}",
                    f"{times['waiting'][method]:.2f}" if "waiting" in times else "",
                    f"{seconds['n']}" + (f", {skipped} SKIPPED" if skipped else ""),
                ]
            )
    yield "\nPeak: of an update, beyond weights and the optimizer's state."


def trained(steps: list[Step], ended: list[Step]) -> Iterator[str]:
    """Lay the cells out."""
    if not steps and not ended:
        return
    yield "\n## Cells: MiniLM-L6, validation sets\n"
    heads = ("task", "method", "rho", "metric", "seeds", "median", "all", "seconds of a run")
    yield row(heads)
    yield row(["---"] * len(heads))
    found = [step for step in steps if "metrics" in step]
    for key in sorted({(s["task"], s["method"], s["rho"]) for s in found}):
        own = [s for s in found if (s["task"], s["method"], s["rho"]) == key]
        metric = next(iter(own[0]["metrics"]))
        values = [s["metrics"][metric] for s in sorted(own, key=lambda s: int(s["seed"]))]
        radius = "" if key[1] == "none" else key[2]
        yield row(
            [
                *(key[0], f"`{key[1]}`", radius, metric, str(len(own))),
                f"{statistics.median(values):.2f}",
                ", ".join(f"{value:.2f}" for value in values),
                f"{statistics.median(s['seconds'] for s in own):.0f}",
            ]
        )
    lost = [s for s in steps if "metrics" not in s]
    cut = sum(s["failed"] == "cut off" for s in lost)
    begun = f", {ended[-1]['not_begun']} not begun" if ended and "not_begun" in ended[-1] else ""
    yield f"\n{len(found)} finished, {cut} cut off, {len(lost) - cut} failed{begun}."
    for step in (*lost, *ended):
        if step.get("failed", "cut off") != "cut off":
            last = step["failed"].strip().splitlines()[-1:]
            yield f"- {step.get('task', '')} {step.get('method', '')}: {' '.join(last)}"


def row(cells: tuple[str, ...] | list[str]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
