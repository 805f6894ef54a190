"""The seven STS sets, as released."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import pytest

from deltasam_fairseq.data.sts import DEVELOPMENT, PAIRS, read_sts, unusual_counts
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.sts import sts_scores


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of each set with two pairs."""
    for year in range(12, 17):
        folder = tmp_path / "raw" / f"STS{year}-en-test"
        folder.mkdir(parents=True)
        (folder / "STS.input.news.txt").write_text('A "cat".\ta cat\tsource\nDogs run\tA bird\n')
        (folder / "STS.gs.news.txt").write_text("4.5\n\n" if year > 14 else "4.5\n1\n")
        (folder / "STS.gs.ALL.txt").write_text("4.5\n1\n")
    folder = tmp_path / "raw" / "STSBenchmark"
    folder.mkdir()
    row = "main\tMSRvid\t2012\t0024\t{}\tA girl.\tShe {}.\n"
    for split in ("dev", "test"):
        (folder / f"sts-{split}.csv").write_text(row.format("2.5", split) + row.format("3", "x"))
    (tmp_path / "SICK_test_annotated.txt").write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        "6\tNo boy\tA group\t3.3\tNEUTRAL\n7\tA man\tA man\t5.0\tENTAILMENT\n"
    )
    return tmp_path


def test_each_set_is_read_raw(release: Path) -> None:
    sets = read_sts([release])
    assert list(sets) == [
        "STS12",
        "STS13",
        "STS14",
        "STS15",
        "STS16",
        "STS-B",
        DEVELOPMENT,
        "SICK-R",
    ]
    (news,) = sets["STS15"]
    assert (news.name, news.first, news.second) == (
        "news",
        ['A "cat".', "Dogs run"],
        ["a cat", "A bird"],
    )
    assert (news.gold, news.scored) == (["4.5", ""], 1)
    assert sets["STS-B"][0].second == ["She test.", "She x."]
    assert sets[DEVELOPMENT][0].second == ["She dev.", "She x."]
    assert sets["SICK-R"][0].gold == ["3.3", "5.0"]
    assert unusual_counts(sets)[:4] == [
        "STS12: 2 scored pairs, papers report on 3,108",
        "STS13: 2 scored pairs, papers report on 1,500",
        "STS14: 2 scored pairs, papers report on 3,750",
        "STS15: 1 scored pairs, papers report on 3,000",
    ]


def test_what_is_wrong_with_a_release_is_said(release: Path) -> None:
    news = release / "raw" / "STS14-en-test" / "STS.input.news.txt"
    with pytest.raises(UserError, match="no STS12-en-test in"):
        read_sts([release / "raw" / "STSBenchmark"])
    for text, message in (
        ("a cat\ta cat\nA Dog\n", "line 2 has 1 fields, not 2"),
        ("A cat\tx\n", "1 pairs, but 2 lines of scores"),
        ("a cat\ta cat\na dog\ta bird\n", "STS14 has no capital letter"),
    ):
        news.write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            read_sts([release])
    (release / "more" / "STS14-en-test").mkdir(parents=True)
    with pytest.raises(UserError, match="STS14-en-test is there 2 times"):
        read_sts([release])


def cosine(first: str, second: str) -> float:
    """Of the counts of lower-cased words."""
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (first, second))
    product = sum(a[word] * b[word] for word in a)
    norms = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return product / norms if norms else 0.0


# Spearman of bag-of-words cosines, by a script of its own (scipy.stats.spearmanr, pairs read
# with csv). They bound what an alignment fault would do: it would bring them to about 0.
WORDS = dict(zip(PAIRS, (41.65, 49.52, 53.73, 65.09, 55.69, 49.37, 53.63), strict=True))


def test_the_released_files_have_the_counts_of_the_papers(data_folder: Path) -> None:
    with pytest.raises(UserError, match="STS12-en-test is there 2 times"):
        read_sts([data_folder / "sts"])
    with pytest.raises(UserError, match="STS12 has no capital letter"):
        read_sts([data_folder / "sts" / "STS", data_folder / "sts" / "SICK"])
    sets = read_sts([data_folder / "sts" / "STS_raw", data_folder / "sts" / "SICK"])
    assert unusual_counts(sets) == []
    assert sum(file.scored for file in sets[DEVELOPMENT]) == 1500
    for name in PAIRS:
        report = sts_scores(
            {
                file.name: (
                    [str(cosine(a, b)) for a, b in zip(file.first, file.second, strict=True)],
                    file.gold,
                )
                for file in sets[name]
            }
        )
        assert report.n == PAIRS[name]
        assert report.spearman == pytest.approx(WORDS[name], abs=0.01), name
