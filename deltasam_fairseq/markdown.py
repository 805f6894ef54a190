"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_lines(
    header: Sequence[str], rules: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[str]:
    r"""Write a table in Markdown; a bar within a cell is escaped, also within code.

    Args:
        header: One name per column.
        rules: How each column is aligned, such as ``--:``.
        rows: Cells of each.

    Returns:
        Its lines.

    Example:
        >>> markdown_lines(["a", "b"], ["---", "--:"], [["`x|y`", "1"]])
        ['| a | b |', '| --- | --: |', '| `x\\|y` | 1 |']
    """
    lines = ([cell.replace("|", r"\|") for cell in row] for row in (header, rules, *rows))
    return [f"| {' | '.join(line)} |" for line in lines]
