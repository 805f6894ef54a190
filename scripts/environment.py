#!/usr/bin/env python3
"""Build the virtual environment that the Makefile's targets run in.

    python3 scripts/environment.py .venv                          fairseq-fixed
    python3.10 scripts/environment.py .venv-upstream --upstream   fairseq 0.12.2

From nothing but Python, a C++ compiler and a package index: torch, fairseq, this package
(editable, so the checkout is what runs) and the tools of ``make test`` and ``make check``. What
is installed is in requirements/. A second run with nothing changed returns at once. Standard
library only, because it runs before anything is installed.

fairseq is compiled without build isolation, in which pip would download a second torch only to
build against it. Without an NVIDIA GPU torch is a CPU build, if one can be found.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "deltasam-environment.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
VERSIONS = (
    "import fairseq, torch; print('fairseq', fairseq.__version__, 'torch', torch.__version__)"
)
#: Minor versions of Python 3: on 3.11 the dataclasses of fairseq 0.12.2 have mutable defaults.
PYTHONS = {"fixed": (10, 11, 12, 13), "upstream": (10,)}
#: Of fairseq-fixed there is a wheel for x86-64 Linux.
WHEELS = {"fixed": (12,), "upstream": ()}


def main(arguments: list[str] | None = None) -> int:
    """Build the environment unless it is there.

    Args:
        arguments: Command line, without the program's name.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the virtual environment")
    parser.add_argument("--upstream", action="store_true", help="fairseq 0.12.2, on Python 3.10")
    parser.add_argument("--torch", metavar="VERSION", help="exact version of torch")
    args = parser.parse_args(arguments)
    flavour = "upstream" if args.upstream else "fixed"
    # Before torch 2.6 torch.load reads the checkpoints of fairseq 0.12.2 as they are.
    pin = args.torch or ("2.4.1" if args.upstream else "")
    stamp = args.folder / STAMP
    wanted = fingerprint(flavour, pin)
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    began = time.monotonic()
    check_machine(flavour)
    create(args.folder)
    stamp.unlink(missing_ok=True)
    build(args.folder / "bin" / "python", flavour, pin)
    stamp.write_text(wanted)
    say(
        f"{args.folder} is ready after {time.monotonic() - began:.0f} s; to use it by hand: "
        f"source {args.folder}/bin/activate"
    )
    return 0


def fingerprint(flavour: str, pin: str) -> str:
    """Return what an environment depends on, in a form that can be compared."""
    digest = hashlib.sha256()
    files = sorted((ROOT / "requirements" / flavour).iterdir())
    for path in (Path(__file__), ROOT / "setup.py", *files):
        digest.update(path.read_bytes())
    words = (platform.python_version(), sys.base_prefix, flavour, pin, str(ROOT))
    return "\n".join((*words, digest.hexdigest()))


def check_machine(flavour: str) -> None:
    """Find what is missing before minutes are spent on downloads.

    Args:
        flavour: ``fixed`` or ``upstream``.

    Raises:
        SystemExit: If this Python is not supported, or Python's ``venv`` or headers or a C++
            compiler are not there.
    """
    minor = sys.version_info[1]
    if minor not in PYTHONS[flavour]:
        known = " or ".join(f"3.{number}" for number in PYTHONS[flavour])
        variable = "PYTHON310" if flavour == "upstream" else "PYTHON"
        raise SystemExit(
            f"this fairseq runs on Python {known}, this is {platform.python_version()} "
            f"({sys.executable}): name another one, such as `make {variable}=/path/to/python …`"
        )
    missing = []
    if importlib.util.find_spec("ensurepip") is None:  # Debian ships that apart
        missing.append("python3-venv")
    wheels_fit = sys.platform == "linux" and platform.machine() == "x86_64"
    if not (wheels_fit and minor in WHEELS[flavour]):
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            missing.append("python3-dev")
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
            missing.append("g++")
    if missing:
        names = " ".join(missing)
        raise SystemExit(f"not on this machine: {names}. On Debian: apt-get install {names}")


def create(folder: Path) -> None:
    """Make the virtual environment; one of another version of Python starts over.

    Args:
        folder: Where.

    Raises:
        SystemExit: If the folder is there and is something else.
    """
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        raise SystemExit(
            f"{folder} exists and is no virtual environment: remove it, or choose another folder "
            "with `make VENV=…`"
        )
    say(f"building {folder} with Python {platform.python_version()}")
    version = output(folder / "bin" / "python", "--version").strip()
    clear = version != f"Python {platform.python_version()}"
    run(sys.executable, "-m", "venv", *(["--clear"] if clear else []), folder)


def build(python: Path, flavour: str, pin: str) -> None:
    """Install everything, in the one order that works.

    Args:
        python: Of the environment.
        flavour: ``fixed`` or ``upstream``.
        pin: Exact version of torch, or empty for the newest.
    """
    files = ROOT / "requirements" / flavour
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install")
    kept = ("-c", files / "build.txt")
    run(*pip, "--quiet", "--upgrade", "-r", files / "build.txt")
    if flavour == "fixed":
        run(*pip, *torch_arguments(python, pin))
    # Before fairseq, or pip would report at length that torchaudio is missing.
    say("installing what fairseq needs")
    run(*pip, "--quiet", *kept, "-r", files / "runtime.txt")
    say("installing fairseq (compiles for two to three minutes if there is no wheel)")
    run(*pip, "--no-build-isolation", "--no-deps", "-r", files / "fairseq.txt")
    if flavour == "upstream":
        run(*pip, *torch_arguments(python, pin))
    say("installing this package and its tools")
    extras = "dev,plots" if flavour == "fixed" else "test,plots"
    run(*pip, "--quiet", "--no-build-isolation", *kept, "--editable", f"{ROOT}[{extras}]")
    run(python, "-W", "ignore", "-c", VERSIONS)


def torch_arguments(python: Path, pin: str) -> list[str]:
    """Return what pip installs torch with: on Linux without an NVIDIA GPU a CPU build.

    PyPI's torch for Linux brings the CUDA libraries. CPU builds carry the label ``+cpu``; they
    are looked for where pip is configured to look, then in PyTorch's own index, which some
    machines cannot reach.

    Args:
        python: Of the environment.
        pin: Exact version, or empty for the newest.

    Returns:
        Requirement and options.
    """
    usual = f"torch=={pin}" if pin else "torch>=2.1"
    if sys.platform != "linux" or has_nvidia_gpu():
        return [usual]
    for place in ([], ["--extra-index-url", CPU_INDEX]):
        pip = (python, "-m", "pip", "--timeout=15", "--retries=0", "index", "versions", "torch")
        listed = re.search(r"^Available versions: (.*)$", output(*pip, *place), re.MULTILINE)
        for version in listed[1].split(", ") if listed else ():  # newest first
            if version.endswith("+cpu") and pin in ("", version.removesuffix("+cpu")):
                return [f"torch=={version}", *place]
    say(f"no CPU build of {usual} to be found: with CUDA, 3 GB to download, 5 GB on disk")
    return [usual]


def has_nvidia_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU that a driver serves."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or "GPU" in output("nvidia-smi", "-L")


def run(*command: str | Path) -> None:
    """Run a command, whose output is shown.

    Args:
        *command: Program and arguments.

    Raises:
        SystemExit: If it fails.
    """
    done = subprocess.run(command, env=_clean(), check=False)
    if done.returncode:
        words = " ".join(map(str, command))
        raise SystemExit(f"[environment] failed with status {done.returncode}: {words}")


def output(*command: str | Path) -> str:
    """Return what a command prints; nothing if it fails or is not there."""
    try:
        done = subprocess.run(command, env=_clean(), capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout


def _clean() -> dict[str, str]:
    """Return the variables without a PYTHONPATH, whose packages pip would take for installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def say(message: str) -> None:
    """Print a line that stands out from pip's."""
    print(f"[environment] {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
