import random
from collections.abc import Iterator

import pytest

from deltasam_fairseq.errors import UserError
from examples.docstrings.corpus import (
    Corpus,
    CorpusSettings,
    Pair,
    build_corpus,
    render_source,
    split,
)
from examples.docstrings.harvest import Documented

SMALL = CorpusSettings(min_train=1, test=40, valid=40, whole_package=30)
WORDS = [f"{a}{b}" for a in ("ba", "co", "di", "fu", "ge") for b in ("lor", "mat", "nis", "pel")]


def invented(count: int, *, packages: int = 20, seed: int = 0) -> Iterator[Documented]:
    """Documented functions that have nothing in common."""
    generator = random.Random(seed)
    for index in range(count):
        words = [generator.choice(WORDS) for _ in range(20)]
        text = f"Do {' '.join(words[:5])} {index}.\n\n{' '.join(words[5:])} {index}."
        yield Documented(f"p{index % packages}.m{index % 7}", f"f_{index}", ("x",), False, text)


def corpus(entries: list[Documented]) -> Corpus:
    return build_corpus([*entries, *invented(300)], SMALL)


def targets(found: Corpus) -> list[str]:
    return [pair.target for pairs in found.splits.values() for pair in pairs]


def entry(docstring: str, *, name: str = "f", module: str = "a.b") -> Documented:
    return Documented(module, name, (), False, docstring)


def test_source_is_signature_and_body_and_target_the_first_sentence() -> None:
    found = corpus(
        [
            Documented(
                "a", "Big.get_it", ("to_do", "*xs"), False, "Get the thing.\n\nOnly if it is there."
            )
        ]
    )
    pair = next(p for pairs in found.splits.values() for p in pairs if p.target == "Get the thing.")
    assert pair.source == "def get it of big (to do, *xs): Only if it is there."


def test_sources_are_cut() -> None:
    long = Documented("a", "C", ("Base",), True, "")
    assert render_source(long, "one two three", max_words=4) == "class c (base): one"


@pytest.mark.parametrize(
    ("docstring", "reason"),
    [
        ("Has no body at all.", "no body"),
        ("Too short.\n\nBut it has a long enough body.", "first sentence too short or too long"),
        (
            "word " * 17 + ".\n\nAnd a long enough body it has.",
            "first sentence too short or too long",
        ),
        ("x + 1 == 2 * y - 3.\n\nAnd a long enough body it has.", "first sentence is not prose"),
    ],
)
def test_unsuitable_docstrings_are_left_out_and_counted(docstring: str, reason: str) -> None:
    assert corpus([entry(docstring)]).dropped[reason] == 1


TEXT = (
    "Return the sum of all leaves.\n\nLeaves without a number count as zero, and empty trees too."
)


@pytest.mark.parametrize(
    ("twin", "reason"),
    [
        (entry(TEXT, name="g", module="other.pkg"), "copy"),
        (entry(TEXT.replace(" and", " AND").replace(",", ";")), "copy"),
        (entry(TEXT + " Really."), "near copy"),
        (entry(TEXT.replace("zero", "nothing"), module="other.pkg"), "near copy"),
    ],
)
def test_copies_and_near_copies_are_dropped_across_packages(twin: Documented, reason: str) -> None:
    found = corpus([entry(TEXT), twin])
    assert found.dropped[reason] == 1
    assert targets(found).count("Return the sum of all leaves.") == 1


def test_same_target_with_another_body_is_no_copy() -> None:
    other = "Return the sum of all leaves.\n\nThis one walks the branches in parallel threads."
    assert corpus([entry(TEXT), entry(other)]).dropped.total() == 0


def test_nothing_leaks_from_train_to_test() -> None:
    found = build_corpus(invented(2000), SMALL)
    places: dict[str, set[str]] = {}
    for name, pairs in found.splits.items():
        for pair in pairs:
            places.setdefault(pair.module, set()).add(name)
    assert all(len(names) == 1 for names in places.values())
    trained = {pair.target.lower() for pair in found.splits["train"]}
    assert not trained & {pair.target.lower() for pair in found.splits["test"]}
    assert len(found.splits["test"]) >= SMALL.test


def test_a_test_pair_with_a_training_target_is_dropped() -> None:
    # every other function has the same first sentence, and a body of its own
    entries = [
        Documented(e.module, e.name, (), False, f"Do the one thing.\n\n{e.docstring}")
        if index % 2
        else e
        for index, e in enumerate(invented(300))
    ]
    found = build_corpus(entries, SMALL)
    counts = {
        name: sum(pair.target == "Do the one thing." for pair in pairs)
        for name, pairs in found.splits.items()
    }
    assert counts["train"] > 0
    assert counts["valid"] == counts["test"] == 0
    assert found.dropped["target is a training target"] == 150 - counts["train"]


def test_small_packages_stay_whole_and_large_ones_are_split_by_module() -> None:
    small = [Pair("small.m1", "s", f"a {i}") for i in range(3)]
    small += [Pair("small.m2", "s", f"b {i}") for i in range(3)]
    large = [Pair(f"large.m{i % 40}", "s", f"c {i}") for i in range(400)]
    parts = split([*small, *large], SMALL)
    where = {
        part: {pair.module for pair in pairs if pair.package == "small"}
        for part, pairs in parts.items()
    }
    assert sorted(map(len, where.values())) == [0, 0, 2]
    assert all(any(pair.package == "large" for pair in pairs) for pairs in parts.values())


def test_the_split_of_a_group_does_not_depend_on_order() -> None:
    entries = list(invented(300))
    shuffled = random.Random(1).sample(entries, len(entries))
    first, second = (build_corpus(e, SMALL) for e in (entries, shuffled))
    for name in ("train", "valid", "test"):
        assert set(first.splits[name]) == set(second.splits[name])


def test_too_few_pairs_is_an_error_that_says_how_many_and_what_to_do() -> None:
    with pytest.raises(UserError, match=r"give \d+ training.*at least 8000.*--min-train"):
        build_corpus(invented(300), CorpusSettings())
