import sys
import time
from pathlib import Path

import pytest

from deltasam_fairseq.data import process
from deltasam_fairseq.data.binarize import binarize, preprocess_command
from deltasam_fairseq.data.process import failure, require_fairseq, run_logged
from deltasam_fairseq.errors import UserError

SPEAK = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"


def test_output_and_errors_go_to_the_log_and_to_the_caller(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "log"
    assert run_logged([sys.executable, "-c", SPEAK], log, on_line=lines.append) == 3
    assert sorted(lines) == ["err", "out"]
    assert sorted(log.read_text().splitlines()) == ["err", "out"]


@pytest.mark.parametrize(("append", "expected"), [(True, "before\nx\n"), (False, "x\n")])
def test_the_log_is_kept_only_if_asked(tmp_path: Path, append: bool, expected: str) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    run_logged([sys.executable, "-c", "print('x')"], log, append=append)
    assert log.read_text() == expected


def test_lines_arrive_while_the_program_runs(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    wait = f"import os, time\nprint('go')\nwhile not os.path.exists({str(flag)!r}): time.sleep(.01)"
    assert (
        run_logged([sys.executable, "-c", wait], tmp_path / "l", on_line=lambda _: flag.touch())
        == 0
    )


@pytest.mark.parametrize("patience", [10, 0.01])
def test_after_ctrl_c_the_program_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """The terminal's Ctrl-C reaches both; where it reached this process alone, it is ended."""
    monkeypatch.setattr(process, "_PATIENCE", patience)
    mark = tmp_path / "ended"
    hears = f"time.sleep(0.2); print('x' * 10**6); open({str(mark)!r}, 'w')"
    ending = hears if patience > 1 else "time.sleep(60)"
    log = tmp_path / "log"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_logged(
            [sys.executable, "-c", f"import time; print('go'); {ending}"], log, on_line=interrupt
        )
    assert mark.exists() is (patience > 1)
    assert (len(log.read_text()) > 10**6) is (patience > 1)
    assert time.monotonic() - begun < 30


def test_a_failure_quotes_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(50)))
    message = failure("fairseq-train", 1, log)
    assert message.startswith(
        f"fairseq-train ended with status 1; the end of {log}:\n  | line 38\n"
    )
    assert message.endswith("  | line 49")


@pytest.mark.parametrize(
    "refused",
    [
        "ValueError: --sam-rho must be at least 0, got -0.1",
        "train.py: error: unrecognized arguments: --sam-rh 0.1",
        "deltasam_fairseq.errors.UserError: no head\n  of that name",
    ],
)
def test_a_refused_flag_is_quoted_without_what_led_to_it(tmp_path: Path, refused: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"Traceback\n  raise ValueError: no\nusage: [--lr LR]\n{refused}\n")
    quoted = failure("fairseq-train", 2, log).partition("\n")[2]
    assert quoted == "\n".join(f"  | {line}" for line in refused.splitlines())


def test_a_missing_fairseq_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"not installed.*pip install 'deltasam_fairseq\[fairseq\]'"
    ):
        require_fairseq()


def test_preprocess_command() -> None:
    command = preprocess_command(Path("p"), Path("b"), workers=2)
    assert command[1:] == [
        *("-m", "fairseq_cli.preprocess", "--source-lang", "source", "--target-lang", "target"),
        *("--trainpref", "p/train", "--validpref", "p/valid", "--testpref", "p/test"),
        *("--destdir", "b", "--joined-dictionary", "--workers", "2"),
    ]


def test_a_failing_preprocess_is_an_error_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = [sys.executable, "-c", "print('no train.source'); raise SystemExit(1)"]
    monkeypatch.setattr(
        "deltasam_fairseq.data.binarize.preprocess_command", lambda *args, **kwargs: program
    )
    with pytest.raises(UserError, match=r"(?s)fairseq-preprocess ended with status 1.*no train"):
        binarize(tmp_path, tmp_path / "bin", workers=1, log=tmp_path / "log")
