"""A summarization corpus out of docstrings: signature and body in, first sentence out.

Three measures keep the test set honest. Near copies are dropped over the whole
corpus, whatever packages they come from. A package goes as a whole into one
split, and a large one goes module by module. And a validation or test pair
whose target is also a training target is left out.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from deltasam_fairseq.errors import UserError
from examples.docstrings.harvest import Documented
from examples.docstrings.text import first_sentence_and_rest

#: Raised with every change of what the same installed packages yield.
CORPUS_VERSION = 1

_WORD = re.compile(r"[a-z0-9]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SKETCH = 8
_RUN = 4


@dataclass(frozen=True)
class CorpusSettings:
    """What decides, beside the installed packages, which pairs there are.

    Args:
        min_train: Fewest training pairs to accept.
        test: Wanted number of test pairs; the last group taken may exceed it a little.
        valid: Wanted number of validation pairs.
        min_target_words: Shorter first sentences are left out.
        max_target_words: Longer first sentences are left out.
        min_body_words: Docstrings with less behind the first sentence are left out.
        max_source_words: Sources are cut here.
        whole_package: A package with more pairs than this is split by its modules.
    """

    min_train: int = 8000
    test: int = 600
    valid: int = 600
    min_target_words: int = 3
    max_target_words: int = 16
    min_body_words: int = 5
    max_source_words: int = 28
    whole_package: int = 100


@dataclass(frozen=True)
class Pair:
    """One example and where it comes from.

    Args:
        module: Dotted module name.
        source: Signature and body, one line.
        target: First sentence, one line.
    """

    module: str
    source: str
    target: str

    @property
    def package(self) -> str:
        """Top-level package."""
        return self.module.partition(".")[0]


@dataclass
class Corpus:
    """The pairs of each split and how they came about.

    Args:
        splits: ``train``, ``valid`` and ``test``.
        dropped: Number of docstrings left out, by reason.
    """

    splits: dict[str, list[Pair]]
    dropped: Counter[str] = field(default_factory=Counter)

    def packages(self) -> dict[str, dict[str, int]]:
        """Count the pairs of each package in each split."""
        counts: dict[str, dict[str, int]] = {}
        for name, pairs in self.splits.items():
            for package, number in Counter(pair.package for pair in pairs).items():
                counts.setdefault(package, {})[name] = number
        return dict(sorted(counts.items()))


def build_corpus(documented: Iterable[Documented], settings: CorpusSettings) -> Corpus:
    """Turn documented functions and classes into a split corpus.

    Args:
        documented: In a fixed order, which decides what of two near copies stays.
        settings: Limits and sizes.

    Returns:
        The corpus, in the order of ``documented`` within each split.

    Raises:
        UserError: If there are fewer training pairs than ``settings.min_train``, or no
            validation or test pairs.
    """
    dropped: Counter[str] = Counter()
    pairs = list(_distinct(_pairs(documented, settings, dropped), dropped))
    splits = split(pairs, settings)
    known = {_normal(pair.target) for pair in splits["train"]}
    for name in ("valid", "test"):
        kept = [pair for pair in splits[name] if _normal(pair.target) not in known]
        dropped["target is a training target"] += len(splits[name]) - len(kept)
        splits[name] = kept
    found = {name: len(part) for name, part in splits.items()}
    if found["train"] < settings.min_train or not found["valid"] or not found["test"]:
        raise UserError(
            f"the installed packages give {found['train']} training, {found['valid']} validation "
            f"and {found['test']} test pairs, and at least {settings.min_train} training pairs and "
            "one of each other are wanted; install more packages with docstrings beside this one "
            "(scipy, scikit-learn, sympy and networkx have many) or lower --min-train"
        )
    return Corpus(splits, dropped)


def render_source(entry: Documented, body: str, *, max_words: int) -> str:
    """Write a signature and a body as one line of words.

    Identifiers are taken apart and lowered, so that the words of a name are the
    words that a sentence about it uses.

    Args:
        entry: Gives the signature.
        body: What follows the first sentence.
        max_words: The line is cut to so many words.

    Returns:
        One line.

    Example:
        >>> entry = Documented("m", "SparseTree.get_leaf", ("node_id",), False, "")
        >>> render_source(entry, "Leaves are cached.", max_words=30)
        'def get leaf of sparse tree (node id): Leaves are cached.'
    """
    *owners, name = entry.name.split(".")
    owner = f" of {identifier_words(owners[-1])}" if owners else ""
    arguments = ", ".join(identifier_words(argument) for argument in entry.arguments)
    kind = "class" if entry.is_class else "def"
    line = f"{kind} {identifier_words(name)}{owner} ({arguments}): {body}"
    return " ".join(line.split()[:max_words])


def identifier_words(identifier: str) -> str:
    """Take an identifier apart at underscores, dots and humps.

    Args:
        identifier: A name as in a program.

    Returns:
        Its words, in lower case.

    Example:
        >>> identifier_words("_parse_HTMLPage2")
        'parse html page2'
    """
    return " ".join(_HUMP.sub(" ", re.sub(r"[_.]", " ", identifier)).lower().split())


def split(pairs: Sequence[Pair], settings: CorpusSettings) -> dict[str, list[Pair]]:
    """Deal whole packages, and modules of large packages, to the three splits.

    Groups come in the order of the SHA-256 of their names; the first ones fill
    the test set, the next ones the validation set, and all others are training
    data. A group of more than half of what a set wants is never put there.

    Args:
        pairs: Distinct pairs.
        settings: Sizes wanted, and from which size on a package is large.

    Returns:
        ``train``, ``valid`` and ``test``, each in the order of ``pairs``.
    """
    sizes = Counter(pair.package for pair in pairs)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        large = sizes[pair.package] > settings.whole_package
        groups[pair.module if large else pair.package].append(index)
    chosen: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    wanted = {"test": settings.test, "valid": settings.valid}
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        group = groups[name]
        for part, size in wanted.items():
            if len(chosen[part]) < size and len(group) <= max(1, size // 2):
                chosen[part] += group
                break
        else:
            chosen["train"] += group
    return {part: [pairs[index] for index in sorted(indices)] for part, indices in chosen.items()}


def _pairs(
    documented: Iterable[Documented], settings: CorpusSettings, dropped: Counter[str]
) -> Iterator[Pair]:
    for entry in documented:
        target, body = first_sentence_and_rest(entry.docstring)
        length = len(target.split())
        if len(body.split()) < settings.min_body_words:
            dropped["no body"] += 1
        elif not settings.min_target_words <= length <= settings.max_target_words:
            dropped["first sentence too short or too long"] += 1
        elif not _is_prose(target):
            dropped["first sentence is not prose"] += 1
        else:
            source = render_source(entry, body, max_words=settings.max_source_words)
            yield Pair(entry.module, source, target)


def _is_prose(sentence: str) -> bool:
    letters = sum(character.isascii() and character.isalpha() for character in sentence)
    return letters >= 0.7 * len(sentence.replace(" ", ""))


def _distinct(pairs: Iterable[Pair], dropped: Counter[str]) -> Iterator[Pair]:
    """Pass on the first of several pairs that are copies or near copies of each other.

    The names in a signature do not count: a text under several names is one
    text. A text is sketched by the eight smallest hashes of its runs of three
    words; two texts whose sketches share four hashes in a row are near copies.

    Yields:
        The distinct pairs.
    """
    exact: set[str] = set()
    near: set[tuple[bytes, ...]] = set()
    for pair in pairs:
        body = pair.source.partition("): ")[2]
        text = _normal(f"{pair.target} {body}")
        if text in exact:
            dropped["copy"] += 1
            continue
        exact.add(text)
        runs = _sketch_runs(text.split())
        if not near.isdisjoint(runs):
            dropped["near copy"] += 1
            continue
        near |= runs
        yield pair


def _sketch_runs(words: Sequence[str]) -> set[tuple[bytes, ...]]:
    shingles = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    hashes = (hashlib.blake2b(shingle.encode(), digest_size=8).digest() for shingle in shingles)
    sketch = heapq.nsmallest(_SKETCH, hashes)
    return {tuple(sketch[i : i + _RUN]) for i in range(max(1, len(sketch) - _RUN + 1))}


def _normal(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
