"""Where a sentence ends, and what a word is: the two choices before a ROUGE score."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.registry import nearest

_SENTENCE_END = re.compile(r"(?<=[.!?])[ \t]+(?=\S)")
#: A full stop, question or exclamation mark that is a word of its own, and what closes behind it.
_PTB_SENTENCE_END = re.compile(r"(?<!\S)([.?!](?: (?:''|'|\"|-RRB-|-rrb-|\)))*)[ \t]+(?=\S)")
#: A sentence's end within a line. It may miss some, but finds nothing else: a word of three
#: letters or more that is no title (Gov., Sept.) and no initials (U.S.), and its mark; or a mark
#: that is a word of its own; and what closes behind it.
_END_WITHIN_LINE = re.compile(
    r"(?:(?<![\w.])(?![A-Z]\w{0,3}\.)\w{3,}[.!?]['\"’”)\]]*"
    r"|(?<=\s)[.!?](?: (?:''|'|\"|-RRB-|-rrb-|\)))*)[ \t]+(?=\S)"
)
#: Of 14,000 single sentences of abstracts 0.1 % have such an end, of 1,992 summaries that should
#: be one sentence 4 %, of CNN/DailyMail's summaries 93 %.
_MANY = 0.25


def _punkt(text: str) -> str:
    import nltk  # noqa: PLC0415 - slow to import

    try:
        return "\n".join(
            sentence for line in text.split("\n") for sentence in nltk.sent_tokenize(line)
        )
    except LookupError:
        raise UserError(
            "--split nltk needs NLTK's sentence model, which is not installed; get it with: "
            "python -m nltk.downloader punkt_tab"
        ) from None


#: How a text becomes lines of one sentence each. Lines that are there already are kept apart.
SPLITTERS: dict[str, Callable[[str], str]] = {
    # The text's own line breaks; a line of a file has none, so it is one sentence.
    "newline": lambda text: text,
    # At white space after a full stop, an exclamation mark or a question mark.
    "sentences": lambda text: _SENTENCE_END.sub("\n", text),
    # For PTB-tokenized text: after a token . ? or ! and the quotes and brackets that close.
    "ptb": lambda text: _PTB_SENTENCE_END.sub("\\1\n", text),
    # For PTB-tokenized text: at " . " and nowhere else, as files2rouge does.
    "files2rouge": lambda text: text.replace(" . ", " .\n"),
    # For raw text: NLTK's Punkt model for English.
    "nltk": _punkt,
}


def _treebank(text: str) -> str:
    from nltk.tokenize import TreebankWordTokenizer  # noqa: PLC0415 - slow to import

    tokenizer = TreebankWordTokenizer()
    return "\n".join(
        " ".join(tokenizer.tokenize(line, convert_parentheses=True)) for line in text.split("\n")
    )


#: How a line of one sentence is cut into words, before ROUGE drops all but letters and digits.
TOKENIZATIONS: dict[str, Callable[[str], str]] = {
    # As it is.
    "none": lambda text: text,
    # NLTK's Penn Treebank rules: "don't" is "do n't", "cannot" is "can not", "(" is "-LRB-".
    "ptb": _treebank,
}


def split_and_tokenize(text: str, *, split: str, tokenization: str) -> str:
    r"""Put one sentence on each line, then cut each into words.

    Args:
        text: As it was written.
        split: A key of :data:`SPLITTERS`.
        tokenization: A key of :data:`TOKENIZATIONS`.

    Returns:
        Lines of words.

    Raises:
        UserError: If a name is unknown; the message lists the known ones.

    Example:
        >>> split_and_tokenize("I can't. You (may).", split="sentences", tokenization="ptb")
        "I ca n't .\nYou -LRB- may -RRB- ."
    """
    if split not in SPLITTERS:
        raise UserError(f"unknown split {split!r}{nearest(split, SPLITTERS)}")
    if tokenization not in TOKENIZATIONS:
        raise UserError(
            f"unknown tokenization {tokenization!r}{nearest(tokenization, TOKENIZATIONS)}"
        )
    return TOKENIZATIONS[tokenization](SPLITTERS[split](text))


def run_together(texts: Iterable[str]) -> bool:
    """Return whether many texts have several sentences in one line: ROUGE-Lsum takes them for one.

    Many are a quarter of those that are not empty.

    Example:
        >>> run_together(["Gov. A. Smith met U.S. officials."])
        False
        >>> run_together(["He won. They lost."])
        True
    """
    found = [bool(_END_WITHIN_LINE.search(text)) for text in texts if text.strip()]
    return sum(found) >= _MANY * max(len(found), 1)
