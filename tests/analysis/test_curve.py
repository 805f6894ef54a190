import sys
from pathlib import Path

import pytest

from deltasam_fairseq.analysis.figures import PANELS, draw_curve
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import RunFolder

MOVED = {"sam_loss": "5.2", "sharpness": "0.2", "sam_ess": "7.5"}
PLAIN = {"loss": "5.0", "bsz": "16"}


def write_run(folder: Path, *, method: str, meters: dict[str, str]) -> RunFolder:
    run = RunFolder(folder)
    run.write_record({"recipe": "text", "method": method, "seed": 1})
    body = ", ".join(f'"{name}": "{value}"' for name, value in meters.items())
    lines = [
        f'2024-05-01 | INFO | train_inner | {{"epoch": 1, {body}, "num_updates": "{update}"}}\n'
        for update in (10, 20, 30)
    ]
    lines.append('2024-05-01 | INFO | valid | {"valid_loss": "6.0", "valid_num_updates": "20"}\n')
    run.log.write_text("".join(lines))
    return run


@pytest.mark.parametrize(
    ("method", "meters"), [("delta_sam", {**PLAIN, **MOVED}), ("none", PLAIN), ("sam", PLAIN)]
)
def test_a_curve_is_a_png_whatever_was_logged(
    tmp_path: Path, method: str, meters: dict[str, str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curve.png"
    draw_curve(write_run(tmp_path / "run", method=method, meters=meters), out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_every_line_that_was_logged_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = pytest.importorskip("matplotlib.axes")
    drawn: list[str] = []
    plot = axes.Axes.plot

    def remember(self: object, *args: object, label: str, **kwargs: object) -> object:
        drawn.append(label)
        return plot(self, *args, label=label, **kwargs)

    monkeypatch.setattr(axes.Axes, "plot", remember)
    run = write_run(tmp_path / "a", method="delta_sam", meters={**PLAIN, **MOVED})
    draw_curve(run, tmp_path / "a.png")
    assert drawn == [*(line.label for panel in PANELS for line in panel.lines), "validation"]
    drawn.clear()
    draw_curve(write_run(tmp_path / "b", method="none", meters=PLAIN), tmp_path / "b.png")
    assert drawn == ["at the weights, l(w)", "validation"]


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = write_run(tmp_path / "run", method="none", meters=PLAIN)
    with pytest.raises(
        UserError, match=r"needs matplotlib.*pip install 'deltasam_fairseq\[plots\]'"
    ):
        draw_curve(run, tmp_path / "curve.png")


def test_a_run_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.log: no such file; train first"):
        draw_curve(RunFolder(tmp_path), tmp_path / "curve.png")
