import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rouge.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_scores_like_the_perl_program_with_intervals(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("The children can't win. They ran.\n")
    (tmp_path / "r").write_text("They ran. The child can't win.\n")
    done = run(str(tmp_path / "h"), str(tmp_path / "r"), "--resamples", "20")
    assert done.returncode == 0, done.stderr
    assert "rougeLsum     100.00    100.00    100.00" in done.stdout
    assert "95 % confidence interval" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert "|like:rouge-1.5.5|" in last
    assert "|split:sentences|tok:ptb|" in last
    assert last.endswith("|bs:20|seed:12345")


def test_a_later_option_replaces_its_own(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("a<q>b\n")
    done = run(str(tmp_path / "h"), str(tmp_path / "h"), "--split", "newline", "--resamples", "2")
    assert "|split:newline|" in done.stdout


def test_it_says_what_is_missing() -> None:
    for arguments, missing in (((), "decoded summaries"), (("h",), "references")):
        done = run(*arguments)
        assert done.returncode != 0
        assert f"name the file of {missing}" in done.stderr
