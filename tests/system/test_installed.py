"""The two ways to the plugin: a checkout with nothing of ours installed, and a wheel.

Both run in an interpreter that reads no ``.pth`` files (``-S``), so that the
editable install of a development environment is out of sight.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "deltasam_fairseq"

TRAIN = """
import runpy, site
site.sethelper()  # left out by -S, and named by mistake in fairseq's configuration
runpy.run_module("fairseq_cli.train", run_name="__main__")
import deltasam_fairseq
print("from", deltasam_fairseq.__file__)
"""

TWO_UPDATES = (
    "--task dummy_mt --dict-size 50 --dataset-size 8 --src-len 5 --tgt-len 5 --batch-size 4 "
    "--arch transformer_tiny --criterion cross_entropy --optimizer delta_sam --sam-rho 0.05 "
    "--lr 0.1 --max-update 2 --cpu --disable-validation --no-save --log-format json"
).split()


def python(
    *arguments: str, folder: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with site-packages and ``path`` to import from."""
    site_packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    roots = [*([str(path)] if path else []), *site_packages]
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        check=False,
    )


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: in the checkout, files of an older build could get in."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (PACKAGE.name, "examples", "scripts"):  # the latter two are not to be shipped
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


@pytest.fixture(autouse=True)
def nothing_of_ours_installed(tmp_path: Path) -> None:
    if python("-c", "import deltasam_fairseq", folder=tmp_path).returncode == 0:
        pytest.skip("deltasam_fairseq is installed here, and not as an editable checkout")


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_the_wheel_asks_for_no_fairseq_unless_told(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        requirements = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    plain = sorted(line for line in requirements if "extra ==" not in line)
    assert plain == ["nltk", "numpy", "rouge-score", "sacrebleu", "sentencepiece", "torch>=2.1"]
    assert any("fairseq-fixed==0.12.3.1" in line for line in requirements)


def user_dir_of(installed: Path, folder: Path) -> str:
    """Return what the console script prints as ``deltasam user-dir``."""
    script = str(installed / "bin" / "deltasam")
    done = python(script, "user-dir", folder=folder, path=installed)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_user_dir_of_the_wheel_is_inside_it(installed: Path, tmp_path: Path) -> None:
    user_dir = Path(user_dir_of(installed, tmp_path))
    assert user_dir.is_dir()
    assert user_dir.is_relative_to(installed)


@pytest.mark.fairseq
def test_trains_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    user_dir = user_dir_of(installed, tmp_path)
    assert_trains(user_dir, folder=tmp_path, path=installed, package_in=installed)


@pytest.mark.fairseq
def test_trains_from_a_checkout(tmp_path: Path) -> None:
    assert_trains(str(ROOT / "user_dir"), folder=tmp_path, package_in=ROOT)


def assert_trains(
    user_dir: str, *, folder: Path, path: Path | None = None, package_in: Path
) -> None:
    """Train two updates through fairseq's own entry, and see that it is our optimizer."""
    done = python("-c", TRAIN, "--user-dir", user_dir, *TWO_UPDATES, folder=folder, path=path)
    assert done.returncode == 0, done.stderr
    assert "sam_loss" in done.stdout + done.stderr
    origin = done.stdout.strip().splitlines()[-1].removeprefix("from ")
    assert Path(origin).is_relative_to(package_in)
