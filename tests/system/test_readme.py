"""README says what the code does: its blocks run, its tables are the code's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deltasam_fairseq.cli import flags
from deltasam_fairseq.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, tmp_path: Path, warm_python: str) -> None:
    done = subprocess.run(
        [warm_python, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    if "print(" in code:
        assert "effective sentences" in done.stdout


@pytest.mark.fairseq
def test_what_extends_it_trains_from_a_user_directory_of_ones_own(
    tmp_path: Path, warm_python: str
) -> None:
    from tests.support import fairseq_data  # noqa: PLC0415 - needs fairseq
    from tests.support import fairseq_toys as toys  # noqa: PLC0415

    code = [c for c in blocks("python") if "register" in c]
    assert len(code) == 3  # the import, a criterion, an estimator
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("\n".join(code))
    data = fairseq_data.write_translation_data(tmp_path / "data")
    command = [warm_python, "-m", "fairseq_cli.train", str(data)]
    command += [*("--user-dir", "mine", "--max-update", "2"), *toys.COMMON]
    command += [*("--task", "translation", "--source-lang", "src", "--target-lang", "tgt")]
    command += [*("--arch", "transformer", *toys.TINY), "--share-all-embeddings"]
    command += ["--criterion", "my_criterion", "--sam-estimator", "halves"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "estimator='halves'" in said
    assert "criterion: MyCriterion" in said
    assert '"sam_ess": "5"' in said  # of 8, those from the lower median on


def test_the_plain_pytorch_example_is_short() -> None:
    (example,) = [code for code in blocks("python") if "DeltaSAM(inner" in code]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20


@pytest.mark.fairseq
def test_the_flag_table_is_the_parsers() -> None:
    (table,) = re.findall(r"<!-- flags: .*? -->\n(.*?)\n<!-- /flags -->", README, re.DOTALL)
    assert table == flags.markdown(flags.own_flags())


def test_every_command_is_a_make_target_or_a_verb() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for verb in set(re.findall(r"deltasam ([a-z][a-z-]+)", README)):
        assert verb in VERBS, f"deltasam {verb}"


def test_the_files_it_names_exist() -> None:
    for name in set(re.findall(r"`((?:core|fairseq_plugin)/[a-z_/]+\.py)`", README)):
        assert (ROOT / "deltasam_fairseq" / name).is_file(), name
    for name in set(re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)):
        assert (ROOT / name).exists(), name


def test_nothing_was_left_to_fill_in() -> None:
    assert "PLACEHOLDER" not in README
    assert "TODO" not in README
