"""Options of a command line from the fields of a dataclass."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from deltasam_fairseq.cli.options import add_settings, values_of
from deltasam_fairseq.settings import setting


@dataclass(frozen=True)
class Baking:
    dough: Path = setting("what to bake", flags=("--dough", "--paste"))
    minutes: int | None = setting("how long", None)
    heat: str = setting("how (%(default)s)", "top", choices=("top", "bottom"))
    open_door: bool = setting("let it cool", False)
    oven: int = 3


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="bake")
    add_settings(found, Baking, heat={"choices": ("top", "fan")})
    return found


def test_fields_become_options_and_options_fields_again() -> None:
    args = parser().parse_args("--paste d --minutes 7 --open-door --heat fan".split())
    assert Baking(**values_of(Baking, args)) == Baking(Path("d"), 7, "fan", True)
    args = parser().parse_args(["--dough", "d"])
    assert Baking(**values_of(Baking, args)) == Baking(Path("d"))


def test_help_names_defaults_and_what_has_no_default_is_required(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = parser().format_help()
    assert "how (top)" in shown
    assert "--minutes N" in shown
    assert "oven" not in shown
    for wrong in ([], ["--dough", "d", "--minutes", "0"], ["--dough", "d", "--heat", "bottom"]):
        with pytest.raises(SystemExit):
            parser().parse_args(wrong)
    said = capsys.readouterr().err
    assert "required: --dough/--paste" in said
    assert "'0' is not a whole number greater than zero" in said
    assert "invalid choice: 'bottom'" in said
