"""Files of figures, and matplotlib, which is optional and loaded late."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deltasam_fairseq.errors import UserError, check_place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".pdf", ".svg")


def check_figure(out: Path) -> None:
    """Make sure that a figure can be written, before anything is computed for it.

    Args:
        out: The file to write.

    Raises:
        UserError: If it is a folder or below none, if its name ends in none of .png, .pdf and
            .svg, or if matplotlib is not installed.
    """
    check_place(out, "figure.png")
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{out}: a figure ends in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}")
    if find_spec("matplotlib") is None:
        raise UserError(
            "drawing needs matplotlib, which is not installed: pip install "
            "'deltasam_fairseq[plots]'"
        )


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure that needs no screen.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure; ``savefig`` writes it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
