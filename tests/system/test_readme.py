"""README and docs say what the code does: their blocks run, their tables are the code's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deltasam_fairseq.cli import flags
from deltasam_fairseq.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT): path.read_text() for path in ROOT.glob("docs/*.md")}
PAGES[Path("README.md")] = README = (ROOT / "README.md").read_text()
# Those of docs/glue.md and docs/per_instance.md have tests of their own.
RUN = ("README.md", "docs/plain_pytorch.md", "docs/fairseq.md", "docs/extend.md")


def blocks(*pages: str) -> list[str]:
    """Return the Python blocks of some pages."""
    code = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [block for page in pages for block in code.findall(PAGES[Path(page)])]


@pytest.mark.parametrize("code", blocks(*RUN))
def test_python_blocks_run(code: str, tmp_path: Path, warm_python: str) -> None:
    for module in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(module)
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

    code = [c for c in blocks("docs/fairseq.md", "docs/extend.md") if "register" in c]
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
    (example,) = [code for code in blocks("README.md") if "DeltaSAM(" in code]
    assert len(example.splitlines()) <= 10


@pytest.mark.fairseq
def test_the_flag_table_is_the_parsers() -> None:
    (table,) = re.findall(
        r"<!-- flags: .*? -->\n(.*?)\n<!-- /flags -->", PAGES[Path("docs/flags.md")], re.DOTALL
    )
    assert table == flags.markdown(flags.own_flags())


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_is_a_make_target_or_a_verb(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGES[page], re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for verb in set(re.findall(r"(?:^|`)deltasam ([a-z][a-z-]+)", PAGES[page], re.MULTILINE)):
        assert verb in VERBS, f"deltasam {verb}"


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_files_and_headings_it_links_to_exist(page: Path) -> None:
    for name in set(re.findall(r"`((?:core|fairseq_plugin)/[a-z_/]+\.py)`", PAGES[page])):
        assert (ROOT / "deltasam_fairseq" / name).is_file(), name
    for name, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGES[page]):
        target = (ROOT / page.parent / name).resolve() if name else ROOT / page
        assert target.exists(), name
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_nothing_was_left_to_fill_in(page: Path) -> None:
    assert "PLACEHOLDER" not in PAGES[page]
    assert "TODO" not in PAGES[page]
