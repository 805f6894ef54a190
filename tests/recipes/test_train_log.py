from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.train_log import LogLine, column, parse_line, read_curve

PREFIX = "2024-05-01 12:00:00 | INFO | "


def update(number: int, loss: float, **more: float) -> str:
    meters = {"epoch": 1, "loss": f'"{loss}"', "num_updates": f'"{number}"', **more}
    body = ", ".join(f'"{name}": {value}' for name, value in meters.items())
    return f"{PREFIX}train_inner | {{{body}}}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (update(5, 2.5), LogLine("train_inner", {"epoch": 1, "loss": 2.5, "num_updates": 5})),
        (PREFIX + 'valid | {"valid_loss": "3.1"}', LogLine("valid", {"valid_loss": 3.1})),
        (PREFIX + 'train | {"a": "x", "b": null, "c": 1}', LogLine("train", {"c": 1})),
        (PREFIX + "fairseq_cli.train | {'_name': None, 'common': {}}", None),
        (PREFIX + 'train_inner | {"epoch": 1, "lo', None),
        (PREFIX + "train | begin training epoch 1", None),
        ("", None),
    ],
)
def test_parse_line(line: str, expected: LogLine | None) -> None:
    assert parse_line(line) == expected


def test_of_updates_in_the_log_twice_the_later_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [update(n, 9.0 - n) for n in (1, 2, 3)] + ["restarted"]
    lines += [update(n, 5.0 - n) for n in (2, 3, 4)]
    log.write_text("\n".join(lines))
    assert column(read_curve(log), "loss") == ([1, 2, 3, 4], [8.0, 3.0, 2.0, 1.0])


def test_lines_of_a_subset_lose_their_prefix(tmp_path: Path) -> None:
    log = tmp_path / "log"
    valid = PREFIX + 'valid | {"epoch": 1, "valid_loss": "3.1", "valid_num_updates": "2"}'
    log.write_text("\n".join([update(2, 9.0), valid]))
    assert column(read_curve(log, "valid"), "loss") == ([2], [3.1])
    assert read_curve(log, "test") == []


def test_a_meter_that_is_missing_or_sparse(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join([update(1, 9.0), update(2, 8.0, sharpness=0.5)]))
    curve = read_curve(log)
    assert column(curve, "sharpness") == ([2], [0.5])
    assert column(curve, "sam_ess") == ([], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "log: no such file; train first"),
        ("nothing\n", "no line of numbers about updates: training ended before the first"),
    ],
)
def test_a_log_without_numbers(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "log").write_text(content)
    with pytest.raises(UserError, match=message):
        read_curve(tmp_path / "log")
