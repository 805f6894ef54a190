"""Where a sentence ends, and what a word is: the two choices before a ROUGE score."""

from __future__ import annotations

import re
from collections.abc import Callable

from deltasam_fairseq.errors import UserError

_SENTENCE_END = re.compile(r"(?<=[.!?])[ \t]+(?=\S)")
#: A full stop, question or exclamation mark that is a word of its own, and what closes behind it.
_PTB_SENTENCE_END = re.compile(r"(?<!\S)([.?!](?: (?:''|'|\"|-RRB-|-rrb-|\)))*)[ \t]+(?=\S)")


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
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITTERS)}")
    if tokenization not in TOKENIZATIONS:
        raise UserError(f"unknown tokenization {tokenization!r}; known: {', '.join(TOKENIZATIONS)}")
    return TOKENIZATIONS[tokenization](SPLITTERS[split](text))
