import hashlib
from pathlib import Path

import pytest

from deltasam_fairseq.data.stories import StoryFiles, parse_story, read_stories, strip_byline
from deltasam_fairseq.errors import UserError

STORY = """\
LONDON, England (CNN) -- It rained on {name}

Then it stopped.\r

"We were\rwet," said one\u2028witness

@highlight

{name} had rain

@highlight

It stopped!
"""


def silent(line: str) -> None:
    pass


def write_story(folder: Path, stem: str, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.story").write_text(STORY.format(name=name), encoding="utf-8", newline="")


def test_a_story_becomes_two_lines() -> None:
    article, summary = parse_story(STORY.format(name="Monday"))
    assert article == (
        "LONDON, England (CNN) -- It rained on Monday. Then it stopped. "
        '"We were wet," said one witness.'
    )
    assert summary == "Monday had rain. It stopped!"


@pytest.mark.parametrize("text", ["", "@highlight\n\nOnly this", "Only an article"])
def test_a_story_may_lack_a_side(text: str) -> None:
    assert "" in parse_story(text)


@pytest.mark.parametrize(
    ("article", "expected"),
    [
        ("(CNN) -- The", "The"),
        ("(CNN)The", "The"),
        ("LONDON, England (CNN) -- The", "The"),
        ("Port-au-Prince, Haiti (CNN) \u2014 The", "The"),
        ("(CNN Student News) -- The", "The"),
        ("CNN -- The", "The"),
        ("He told (CNN) that", "He told (CNN) that"),
        ("The network (CNN) said", "The network (CNN) said"),
        ("By . Daily Mail Reporter", "By . Daily Mail Reporter"),
        ("", ""),
    ],
)
def test_bylines_go_and_sentences_stay(article: str, expected: str) -> None:
    assert strip_byline(article) == expected


def test_the_lists_of_addresses_say_which_story_is_where(tmp_path: Path) -> None:
    lists = tmp_path / "url_lists"
    lists.mkdir()
    for split, names in (("train", "abc"), ("val", "d"), ("test", "ef")):
        (lists / f"all_{split}.txt").write_text("".join(f"http://{n}\n" for n in names))
        for name in names:
            folder = tmp_path / ("cnn" if name < "d" else "dailymail") / "stories"
            if name != "b":
                write_story(folder, hashlib.sha1(f"http://{name}".encode()).hexdigest(), name)
    said: list[str] = []
    files = StoryFiles((tmp_path / "cnn", tmp_path / "dailymail"), lists)
    splits = read_stories(files, workers=2, say=said.append)
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [2, 1, 2]
    assert splits["train"].targets == [f"{name} had rain. It stopped!" for name in "ac"]
    assert "train: 1 of 3 addresses have no story; they are left out" in said


def test_folders_may_say_it_instead(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_story(tmp_path / split, "x", split)
    splits = read_stories(StoryFiles((tmp_path,)), say=silent)
    assert splits["valid"].targets == ["val had rain. It stopped!"]
    assert splits["test"].sources == [parse_story(STORY.format(name="test"))[0]]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folders train, valid and test with .story"):
        read_stories(StoryFiles((tmp_path,)), say=silent)
    with pytest.raises(UserError, match=r"has no all_train\.txt"):
        read_stories(StoryFiles((tmp_path,), tmp_path), say=silent)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_stories(StoryFiles((tmp_path / "nowhere",), tmp_path), say=silent)
    write_story(tmp_path / "train", "x", "train")
    with pytest.raises(UserError, match="no story of the split valid"):
        read_stories(StoryFiles((tmp_path,)), say=silent)


def test_a_story_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_story(tmp_path / split, "x", split)
    (tmp_path / "train" / "y.story").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"y\.story: not UTF-8 \(byte 0xe9 at 3\)"):
        read_stories(StoryFiles((tmp_path,)), say=silent)
