"""Write docs/support.md from the table that the tests are written against.

python scripts/support_page.py           print the page
python scripts/support_page.py --write   replace docs/support.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "support.md"
sys.path.insert(0, str(ROOT))

from deltasam_fairseq.markdown import markdown_lines  # noqa: E402
from tests.fairseq_plugin import matrix  # noqa: E402

HEAD = """# What is supported

This page is written by `python scripts/support_page.py --write` from
[tests/fairseq_plugin/matrix.py](../tests/fairseq_plugin/matrix.py), which the tests named in its
last column read or are listed in; a test compares the two. *Equal* is what the test asserts of the
comparison named beside it (bit for bit where it says so, else to rounding); *≤ 1 %* is a difference
that was measured and is now an upper bound; *refused* is an error before the first update, with the
reason; – is a cell without a meaning.

Every cell is backed by a test that runs without a GPU. Precision settings that fairseq offers on
GPUs alone run there with the few calls to CUDA replaced (`precision_without_gpu` in
[tests/support/fairseq_toys.py](../tests/support/fairseq_toys.py)), and `--amp` as bfloat16 autocast
with PyTorch's loss scaler for CPUs. **On a GPU nothing of this was run yet**: not the cells, not
NCCL, not apex's fused optimizers and layers. The tests marked `gpu` have never run there; their
bodies have, on the CPU. [gpu.md](gpu.md) says how one command runs them.
"""

SECTIONS: tuple[tuple[str, str, Sequence[matrix.Row]], ...] = (
    ("One process", "", matrix.SINGLE),
    (
        "Precision",
        "The gradient that the inner optimizer gets, against a run in fp32 from the same weights: "
        "difference of the directions, and of the norms.",
        matrix.PRECISION,
    ),
    (
        "Workers",
        "Two gloo workers against one process with the same sentences, three updates, in float64: "
        "every weight, and what is logged. `pytorch_ddp` is wrapped without device ids.",
        matrix.WORKERS,
    ),
    ("Beside other settings", "", matrix.INTERPLAY),
    (
        "Tasks",
        "Every task that fairseq 0.12.3.1 ships: two updates of a tiny model, or the beginning of "
        "the message. *Fails in fairseq*: the error is the one that `--optimizer adam` ends in.",
        matrix.TASK_ROWS,
    ),
    (
        "Faults",
        "Kills, full disks and damaged files are in tests/system/test_faults.py.",
        matrix.FAULTS,
    ),
    ("Refused", "The messages begin so.", matrix.REFUSALS),
)


def render() -> str:
    """Return the page."""
    return "\n".join([HEAD, *(line for section in SECTIONS for line in _section(*section))])


def _section(title: str, text: str, rows: Sequence[matrix.Row]) -> Iterator[str]:
    yield f"## {title}\n"
    if text:
        yield f"{text}\n"
    described = any(row.meaning for row in rows)
    heads = ["setting", *(f"`{m}`" for m in matrix.METHODS), *(["compared"] if described else [])]
    cells = [
        [
            row.setting,
            *row.cells,
            *([row.meaning] if described else []),
            f"`{row.test.split('::')[1]}`",
        ]
        for row in rows
    ]
    yield from markdown_lines([*heads, "test"], ["---"] * (len(heads) + 1), cells)
    yield ""


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(render(), encoding="utf-8")
    else:
        print(render())
