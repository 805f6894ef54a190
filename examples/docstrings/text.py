"""From one docstring to plain text: its first sentence and the rest.

Docstrings are written in reStructuredText, in the Google and numpy styles, in
Markdown, and in none of them. Nothing here parses any of these; a handful of
substitutions removes what would be noise in a summarization corpus: examples,
rules under headings, roles, directives, doubled backticks.
"""

from __future__ import annotations

import re
import textwrap

_DOCTEST = re.compile(r"^[ \t]*>>>.*(?:\n(?![ \t]*$).*)*", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*([=\-~^*+#`\"'_])\1{2,}[ \t]*$", re.MULTILINE)
_DIRECTIVE = re.compile(r"^([ \t]*)\.\. [\w:|\[].*(?:\n(?:\1[ \t]+\S.*|[ \t]*$))*", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`([^`]*)`")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}")
_URL = re.compile(r"<?\b(?:https?|ftp)://[^\s>)]+>?")
_LITERAL = re.compile(r"`+([^`]*)`+_{0,2}")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])")
_CITATION = re.compile(r"\s*\[[\w.-]+\]_")
_CALL_LINE = re.compile(r"^[\w.]+\(.*\)(?:\s*->.*)?$", re.DOTALL)

_SENTENCE_END = re.compile(r"[.!?][)\"'\]]*(?=\s|$)")
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|etc|cf|vs|resp|approx|et al|fig|eq|sec)\.[)\"'\]]*$", re.IGNORECASE
)


def plain_text(text: str) -> str:
    r"""Remove examples and markup from a docstring; keep its paragraphs.

    Args:
        text: A docstring, or a part of one, with its lines.

    Returns:
        Text whose paragraphs are separated by one empty line and hold one line each.

    Example:
        >>> plain_text("See :class:`~a.b.Tree`.\n\nExamples\n--------\n>>> 1\n1")
        'See Tree.\n\nExamples'
    """
    for pattern in (_FENCE, _DOCTEST, _DIRECTIVE, _RULE):
        text = pattern.sub("", text)
    text = _ROLE.sub(_role_text, text)
    text = _LINK.sub(r"\1", text)
    text = _URL.sub("", text)
    text = _LITERAL.sub(r"\1", text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _CITATION.sub("", text)
    text = text.replace("::", ":").replace("\\", "")
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n[ \t]*\n", text))
    return "\n\n".join(part for part in paragraphs if part)


def first_sentence_and_rest(docstring: str) -> tuple[str, str]:
    r"""Split a docstring into its first sentence and everything after it.

    A first paragraph that only repeats the call (``f(x) -> y``, the habit of
    compiled modules) is left out. A first paragraph without a full stop counts
    as one sentence.

    Args:
        docstring: As :func:`ast.get_docstring` returns it.

    Returns:
        Both parts, each on one line, without markup. Either may be empty.

    Example:
        >>> first_sentence_and_rest("Add two numbers, e.g. 1 and 2. Fast.\n\nReturns the sum.")
        ('Add two numbers, e.g. 1 and 2.', 'Fast. Returns the sum.')
    """
    paragraphs = plain_text(textwrap.dedent(docstring)).split("\n\n")
    if _CALL_LINE.match(paragraphs[0]):
        paragraphs = paragraphs[1:] or [""]
    head = paragraphs[0]
    end = len(head)
    for found in _SENTENCE_END.finditer(head):
        if not _ABBREVIATION.search(head[: found.end()]):
            end = found.end()
            break
    rest = [head[end:].strip(), *paragraphs[1:]]
    return head[:end], " ".join(part for part in rest if part)


def _role_text(match: re.Match[str]) -> str:
    """Return what Sphinx would show for a role: the title, or the last dotted part after ``~``."""
    content = match.group(1)
    title = content.split("<", 1)[0].strip()
    if title and title != content.strip():
        return title
    if content.startswith("~"):
        return content.rsplit(".", 1)[-1].lstrip("~")
    return content.lstrip("!")
