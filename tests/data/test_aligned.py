from pathlib import Path

import pytest

from deltasam_fairseq.data.aligned import Aligned, hold_out, read_aligned, read_lines
from deltasam_fairseq.errors import UserError


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\n", ["a b"]),
        ("a\u2028b\x0bc\x85d\n".encode(), ["a b c d"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        (b"  a \t b\n", ["a b"]),
        (b"a\n\nb\n", ["a", "", "b"]),
    ],
)
def test_only_newlines_end_a_line(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    assert read_lines(write(tmp_path / "f", content)) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"f: no such file$"),
        (b"", r"f: the file is empty$"),
        (b"fine\nna\xefve\n", r"f, line 2: not UTF-8 \(byte 0xef\); .*iconv"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_lines(path)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\n", b"c\n", r"s has 2 lines and .*t has 1"),
        (b"a\n \nb\n", b"c\nd\ne\n", r"s: 1 empty line\(s\), at 2; remove them from both"),
        (b"a\nb\nc\n", b"\nd\n\n", r"t: 2 empty line\(s\), at 1, 3;"),
        (b"a\n" * 9, b"\n" * 9, r"t: 9 empty line\(s\), at 1, 2, 3, 4, 5, …;"),
    ],
)
def test_misaligned_files(tmp_path: Path, source: bytes, target: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_aligned(write(tmp_path / "s", source), write(tmp_path / "t", target))


def test_hold_out_is_deterministic_whatever_the_order() -> None:
    lines = [f"source {i}" for i in range(100)]
    pairs = Aligned(lines, [f"target {i}" for i in range(100)])
    backwards = Aligned(pairs.sources[::-1], pairs.targets[::-1])
    kept, taken = hold_out(pairs, 10)
    again, also = hold_out(backwards, 10)
    assert len(taken) == 10
    assert taken.sources == [line for line in lines if line in set(taken.sources)]
    assert sorted(taken.targets) == sorted(also.targets)
    assert sorted(kept.sources + taken.sources) == sorted(lines)
    assert again.sources == kept.sources[::-1]


def test_hold_out_keeps_equal_sources_together() -> None:
    pairs = Aligned([f"s{i % 30}" for i in range(120)], [f"t{i}" for i in range(120)])
    kept, taken = hold_out(pairs, 5)
    assert not set(kept.sources) & set(taken.sources)
    assert len(taken) == 8  # two sources, four times each


def test_hold_out_refuses_to_take_most() -> None:
    with pytest.raises(UserError, match=r"cannot hold 3 of 5 .*--hold-out"):
        hold_out(Aligned(list("abcde"), list("abcde")), 3)
