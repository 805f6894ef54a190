"""The stemmer of ROUGE-1.5.5: WordNet's exceptions first, then Porter's rules, with its own turns.

Where the original differs from Porter (1980), and so does this:

* Step 2 has ``logi`` → ``log``, and ``bli`` → ``ble`` in the place of ``abli`` → ``able``.
* Step 4 tries ``-ment`` and ``-ent`` after the other suffixes, on what these have left, so one
  word can lose two suffixes there. Every other implementation takes one at most.

NLTK's stemmer, which rouge-score uses, departs from Porter in other places
(``-ies``, ``-ied``, ``-logi``, ``-fulli`` and a list of irregular words).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from deltasam_fairseq.errors import UserError

#: The exception lists of WordNet 2.0, which come with ROUGE-1.5.5 and with this package.
WORDNET_2_0 = Path(__file__).parent / "wordnet_exceptions"

_CONSONANTS, _VOWELS = "[^aeiou][^aeiouy]*", "[aeiouy][aeiou]*"
_HAS_VOWEL = re.compile(f"({_CONSONANTS})?[aeiouy]")
_MEASURE_OVER_0 = re.compile(f"({_CONSONANTS})?{_VOWELS}{_CONSONANTS}")
_MEASURE_1 = re.compile(f"({_CONSONANTS})?{_VOWELS}{_CONSONANTS}({_VOWELS})?$")
_MEASURE_OVER_1 = re.compile(f"({_CONSONANTS})?({_VOWELS}{_CONSONANTS}){{2}}")
#: Consonant, vowel, consonant other than w, x and y: a word like "hop", which wants its e back.
_SHORT = re.compile(f"{_CONSONANTS}[aeiouy][^aeiouwxy]$")
_DOUBLED = re.compile(r"([^aeiouylsz])\1$")

_STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "logi": "log",
}
_STEP_3 = {
    "icate": "ic",
    "ative": "",
    "alize": "al",
    "iciti": "ic",
    "ical": "ic",
    "ful": "",
    "ness": "",
}
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ou", "ism"),
    *("ate", "iti", "ous", "ive", "ize"),
)


def read_exceptions(folder: Path) -> dict[str, str]:
    """Read the exception lists of a WordNet.

    A word in several lists takes its form from the last in alphabetical order
    of the file names, as in the data base that is distributed with ROUGE-1.5.5:
    "better" becomes "well", "is" becomes "be".

    Args:
        folder: The folder ``dict`` of an installed WordNet, for example.

    Returns:
        Base forms by irregular form; of several base forms the first.

    Raises:
        UserError: If a list is missing.
    """
    exceptions: dict[str, str] = {}
    for name in ("adj.exc", "adv.exc", "noun.exc", "verb.exc"):
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; the folder of a WordNet's exception lists is wanted, "
                "such as /usr/share/wordnet or nltk_data/corpora/wordnet"
            )
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            word, *bases = line.split()[:2] or [""]
            if bases:
                exceptions[word] = bases[0]
    return exceptions


class Stemmer155:
    """Reduces words as ROUGE-1.5.5 does.

    Args:
        exceptions: Words that are looked up, not stemmed; see :func:`read_exceptions`.

    Example:
        >>> stemmer = Stemmer155(read_exceptions(WORDNET_2_0))
        >>> [stemmer.stem(word) for word in ("children", "policies", "basement")]
        ['child', 'polici', 'basem']
    """

    def __init__(self, exceptions: Mapping[str, str]) -> None:
        self._exceptions = exceptions

    def stem(self, word: str) -> str:
        """Reduce a word of lower-case letters and digits; one of three or fewer stays as it is."""
        return word if len(word) <= 3 else self._exceptions.get(word) or porter(word)


@lru_cache(maxsize=2**16)
def porter(word: str) -> str:
    """Return the stem of a word of three or more lower-case letters and digits, by the rules alone.

    Example:
        >>> [porter(word) for word in ("relational", "hopping", "yes", "commitment")]
        ['relat', 'hop', 'ye', 'commit']
    """
    # An initial y is a consonant; as a capital no pattern takes it for a vowel.
    stem = f"Y{word[1:]}" if word.startswith("y") else word
    for step in (_plural, _past, _final_y, _double_suffix, _single_suffix, _bare_suffix, _final_e):
        stem = step(stem)
    return f"y{stem[1:]}" if word.startswith("y") else stem


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if len(word) > 1 and word[-1] == "s" and word[-2] != "s" else word


def _past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _MEASURE_OVER_0.match(word[:-3]) else word
    stem = word.removesuffix("ed" if word.endswith("ed") else "ing")
    if stem == word or not _HAS_VOWEL.match(stem):
        return word
    if stem.endswith(("at", "bl", "iz")):
        return f"{stem}e"
    if _DOUBLED.search(stem):
        return stem[:-1]
    return f"{stem}e" if _SHORT.match(stem) else stem


def _final_y(word: str) -> str:
    return f"{word[:-1]}i" if word.endswith("y") and _HAS_VOWEL.match(word[:-1]) else word


def _double_suffix(word: str) -> str:
    return _replace_longest(word, _STEP_2)


def _single_suffix(word: str) -> str:
    return _replace_longest(word, _STEP_3)


def _replace_longest(word: str, endings: Mapping[str, str]) -> str:
    suffix = max(filter(word.endswith, endings), key=len, default="")
    stem = word.removesuffix(suffix)
    return stem + endings[suffix] if suffix and _MEASURE_OVER_0.match(stem) else word


def _bare_suffix(word: str) -> str:
    word = _strip(word, max(filter(word.endswith, _STEP_4), key=len, default=""))
    word = _strip(word, "ment")
    if word.endswith("ent"):
        return _strip(word, "ent")
    return _strip(word, "ion") if word.endswith(("sion", "tion")) else word


def _strip(word: str, suffix: str) -> str:
    stem = word.removesuffix(suffix)
    return stem if _MEASURE_OVER_1.match(stem) else word


def _final_e(word: str) -> str:
    stem = word.removesuffix("e")
    if stem != word and (
        _MEASURE_OVER_1.match(stem) or (_MEASURE_1.match(stem) and not _SHORT.match(stem))
    ):
        word = stem
    return word[:-1] if word.endswith("ll") and _MEASURE_OVER_1.match(word) else word
