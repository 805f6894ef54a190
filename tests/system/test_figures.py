"""Files of figures."""

import sys
from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.figures import check_figure


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "out.txt: a figure ends in .png, .pdf or .svg"),
        ("noext", "noext: a figure ends in .png, .pdf or .svg"),
        ("folder", "folder is a folder; name a file in it, .*folder/figure.png"),
        ("folder.png", "folder.png is a folder"),
        ("missing/costs.png", "there is no folder .*missing; make it first"),
    ],
)
def test_figures_that_cannot_be_written_are_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    pytest.importorskip("matplotlib")
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        check_figure(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'deltasam_fairseq\[plots\]'"):
        check_figure(tmp_path / "costs.png")
