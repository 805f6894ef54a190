#!/usr/bin/env python3
"""Build the virtual environment that the Makefile's targets run in.

    python3 scripts/environment.py .venv                        fairseq-fixed
    python3.10 scripts/environment.py .venv-upstream --upstream   fairseq 0.12.2

From nothing but Python, a C++ compiler and a package index: torch, fairseq,
this package (editable, so the checkout is what runs) and the tools that
``make test`` and ``make check`` need. A second run with nothing changed
returns at once. Standard library only, because it runs before anything is
installed.

Three choices are made here and nowhere else.

* Torch on a Linux machine without an NVIDIA GPU is a CPU build, if one can be
  found, instead of gigabytes of CUDA libraries (:func:`install_torch`).
* fairseq is installed without its own dependency list, which asks for
  torchaudio: nothing in fairseq's text tasks imports it, and its wheel needs
  CUDA libraries. What is needed is listed in :class:`Flavour`.
* fairseq is compiled without build isolation: in isolation pip would download
  a second torch only to build against it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "deltasam-environment.txt"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


# What fairseq's --tokenizer moses, --eval-bleu-detok moses and --bpe subword_nmt import, which its
# metadata leaves out: its commands for IWSLT and WMT have them. sentencepiece, tokenizers and nltk
# come with this package. For --bpe fastbpe there is no wheel; it reads the codes of subword-nmt.
TEXT_FLAGS = ("sacremoses", "subword-nmt")


@dataclass(frozen=True)
class Flavour:
    """One distribution of fairseq and what it takes to build and run it.

    Attributes:
        fairseq: The requirement that brings the module ``fairseq``.
        pythons: Minor versions of Python 3 that it runs on.
        wheels: Minor versions for which PyPI has a wheel for x86-64 Linux; the
            others compile for some minutes.
        build: What has to be there first; kept at these versions afterwards.
        runtime: fairseq's dependencies, torch and torchaudio apart.
        torch: Exact version of torch, or empty for the newest.
        torch_first: Whether torch has to be there when fairseq is compiled.
        extras: Extras of this package.
        companions: What fairseq uses only where it is there, without its dependencies.
    """

    fairseq: str
    pythons: tuple[int, ...]
    wheels: tuple[int, ...]
    build: tuple[str, ...]
    runtime: tuple[str, ...]
    torch: str
    torch_first: bool
    extras: str
    companions: tuple[str, ...] = ()


FIXED = Flavour(
    fairseq="fairseq-fixed==0.12.3.1",
    pythons=(10, 11, 12, 13),
    wheels=(12,),
    # Its setup.py was tried with setuptools 80, not with later ones.
    build=("pip", "setuptools<81", "wheel", "cython", "numpy>=1.21.3"),
    runtime=(
        "hydra-core==1.3.2",
        "omegaconf==2.3.0",
        *TEXT_FLAGS,
        "bitarray",
        "cffi",
        "packaging",
        "regex",
        "sacrebleu>=1.4.12",
        "scikit-learn",
        "scipy",
        "tqdm",
    ),
    torch="",
    torch_first=True,
    extras="dev,plots",
    companions=("fairscale==0.4.13",),  # --zero-sharding; pure Python
)

UPSTREAM = Flavour(
    fairseq="fairseq==0.12.2",
    # On Python 3.11 its dataclasses have mutable defaults: it does not import.
    pythons=(10,),
    wheels=(),
    # pip 24.1 refuses the metadata of omegaconf 2.0.6. fairseq 0.12.2 uses
    # np.float and np.int, which numpy 1.24 removed, and does not compile with
    # cython 3.
    build=("pip<24.1", "setuptools<70", "wheel", "cython<3", "numpy<1.24"),
    runtime=(
        "hydra-core==1.0.7",
        "omegaconf==2.0.6",
        *TEXT_FLAGS,
        "bitarray",
        "cffi",
        "regex",
        "sacrebleu>=1.4.12",
        "scikit-learn",
        "scipy",
        "tqdm",
    ),
    # Before torch 2.6 torch.load reads fairseq's checkpoints as they are.
    torch="2.4.1",
    # Where torch is installed, its setup.py wants C++ sources that its sdist
    # lacks (so this fairseq has no fairseq.libnat: no Levenshtein models).
    torch_first=False,
    extras="test,plots",
)


class EnvironmentBuildError(Exception):
    """The environment cannot be built; the text tells the user what to do."""


class Environment:
    """A virtual environment and its pip.

    Args:
        path: Its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"

    def create(self) -> None:
        """Make the environment; one that another Python version made goes.

        Raises:
            EnvironmentBuildError: If the folder is there and is something else.
        """
        clear: list[str] = []
        if self.path.exists():
            if not (self.path / "pyvenv.cfg").is_file():
                raise EnvironmentBuildError(
                    f"{self.path} exists and is no virtual environment: remove it, or choose "
                    "another folder with `make VENV=…`"
                )
            if self.version() != platform.python_version():
                say(f"{self.path} belongs to another Python ({self.version()}): starting over")
                clear = ["--clear"]
        run([sys.executable, "-m", "venv", *clear, str(self.path)])

    def version(self) -> str:
        """Return the version of its Python, "unknown" if that does not run."""
        code = "import platform; print(platform.python_version())"
        try:
            return run([str(self.python), "-c", code], capture=True).strip()
        except EnvironmentBuildError:
            return "unknown"

    def install(self, *arguments: str, quiet: bool = False) -> None:
        """Run ``pip install`` with these arguments."""
        options = ["--disable-pip-version-check", *(["--quiet"] if quiet else [])]
        run([str(self.python), "-m", "pip", "install", *options, *arguments])

    def cpu_builds(self, *options: str) -> list[str]:
        """Return torch's CPU builds that pip can find, newest first.

        Args:
            *options: Options of pip that say where to look.

        Returns:
            Versions such as ``"2.4.1+cpu"``. Only a build with this very label
            satisfies ``torch==2.4.1+cpu``, so it cannot be mistaken.
        """
        pip = [str(self.python), "-m", "pip", "--timeout=15", "--retries=0"]
        try:
            output = run([*pip, "index", "versions", "torch", *options], capture=True)
        except EnvironmentBuildError:
            return []
        return cpu_versions(output)


def cpu_versions(listing: str) -> list[str]:
    """Pick the CPU builds out of what ``pip index versions`` prints.

    Args:
        listing: The output of pip.

    Returns:
        The versions in pip's order, newest first.
    """
    for line in listing.splitlines():
        label, _, versions = line.partition(":")
        if label == "Available versions":
            return [v for v in versions.replace(",", " ").split() if v.endswith("+cpu")]
    return []


def install_torch(environment: Environment, pin: str) -> None:
    """Install torch: on Linux without an NVIDIA GPU the CPU build, if there is one.

    PyPI's torch for Linux brings the CUDA libraries. CPU builds carry the label
    ``+cpu``; they are looked for first where pip is configured to look, then in
    PyTorch's own index, which some machines cannot reach.

    Args:
        environment: Where to install it.
        pin: Exact version, or empty for the newest.
    """
    requirement = f"torch=={pin}" if pin else "torch>=2.1"
    if sys.platform != "linux" or has_nvidia_gpu():
        say(f"installing {requirement}")
        environment.install(requirement)
        return
    sources: dict[str, list[str]] = {
        "the places that pip is configured with": [],
        PYTORCH_CPU_INDEX: ["--extra-index-url", PYTORCH_CPU_INDEX],
    }
    for place, options in sources.items():
        say(f"no NVIDIA GPU here: looking for a CPU build of {requirement} in {place}")
        builds = environment.cpu_builds(*options)
        build = next((b for b in builds if not pin or b == f"{pin}+cpu"), None)
        if build:
            say(f"installing torch {build}")
            environment.install(f"torch=={build}", *options)
            return
        say("none there")
    say(f"installing {requirement} with CUDA: 3 GB to download, 5 GB on disk")
    environment.install(requirement)


def has_nvidia_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU that a driver serves."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:
        return "GPU" in run(["nvidia-smi", "-L"], capture=True)
    except EnvironmentBuildError:
        return False


def check_machine(flavour: Flavour) -> None:
    """Find what is missing before minutes are spent on downloads.

    Args:
        flavour: What is going to be built.

    Raises:
        EnvironmentBuildError: If this Python is not supported, or Python's
            ``venv`` or headers or a C++ compiler are not there.
    """
    if sys.version_info[0] != 3 or sys.version_info[1] not in flavour.pythons:
        known = " or ".join(f"3.{minor}" for minor in flavour.pythons)
        variable = "PYTHON310" if flavour is UPSTREAM else "PYTHON"
        raise EnvironmentBuildError(
            f"{flavour.fairseq} runs on Python {known}, this is {platform.python_version()} "
            f"({sys.executable}): name another one, such as `make {variable}=/path/to/python …`"
        )
    missing = []
    if not has_ensurepip():
        missing.append("python3-venv")
    wheels_fit = sys.platform == "linux" and platform.machine() == "x86_64"
    if not (wheels_fit and sys.version_info[1] in flavour.wheels):
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            missing.append("python3-dev")
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
            missing.append("g++")
    if missing:
        raise EnvironmentBuildError(
            f"not on this machine: {', '.join(missing)}. On Debian: apt-get install "
            + " ".join(missing)
        )


def has_ensurepip() -> bool:
    """Return whether ``venv`` can put pip in (Debian ships that apart)."""
    try:
        import ensurepip  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


def fingerprint(flavour: Flavour, torch: str) -> str:
    """Return what an environment depends on, in a form that can be compared.

    ``pyproject.toml`` is left out: tools read their settings from the checkout.

    Args:
        flavour: What is going to be built.
        torch: The wanted version of torch, or empty.

    Returns:
        A few words and the hash of the files that decide what is installed.
    """
    digest = hashlib.sha256()
    for path in (Path(__file__), ROOT / "setup.py"):
        digest.update(path.read_bytes())
    words = (platform.python_version(), sys.base_prefix, flavour.fairseq, torch, str(ROOT))
    return "\n".join((*words, digest.hexdigest()))


def build(environment: Environment, flavour: Flavour, torch: str) -> None:
    """Install everything, in the one order that works.

    Args:
        environment: Where.
        flavour: What.
        torch: Exact version of torch, or empty.
    """
    environment.create()
    say("installing pip, setuptools, cython and numpy")
    environment.install("--upgrade", *flavour.build, quiet=True)
    if flavour.torch_first:
        install_torch(environment, torch)
    # Before fairseq, or pip would report at length that torchaudio is missing.
    say("installing what fairseq needs")
    environment.install(*flavour.build, *flavour.runtime, quiet=True)
    say(f"installing {flavour.fairseq} (compiles for two to three minutes if there is no wheel)")
    together = (flavour.fairseq, *flavour.companions)
    environment.install("--no-build-isolation", "--no-deps", *together)
    if not flavour.torch_first:
        install_torch(environment, torch)
    say("installing this package and its tools")
    package = f"{ROOT}[{flavour.extras}]"
    environment.install("--no-build-isolation", *flavour.build, "--editable", package, quiet=True)


def versions(environment: Environment) -> str:
    """Return the installed versions in one line, having imported them."""
    code = (
        "import platform, fairseq, torch; "
        "print(f'Python {platform.python_version()}, torch {torch.__version__}, '"
        "f'fairseq {fairseq.__version__}')"
    )
    return run([str(environment.python), "-c", code], capture=True).strip().splitlines()[-1]


def run(command: list[str], *, capture: bool = False) -> str:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        capture: Whether to keep its output instead of showing it.

    Returns:
        Its standard output; empty unless captured.

    Raises:
        EnvironmentBuildError: If it cannot be started or fails.
    """
    # A PYTHONPATH of the caller would let pip see packages that are not there.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipe = subprocess.PIPE if capture else None
    try:
        done = subprocess.run(command, env=clean, stdout=pipe, stderr=pipe, text=True, check=False)
    except OSError as error:
        raise EnvironmentBuildError(f"cannot run {command[0]}: {error}") from error
    if done.returncode:
        details = f"\n{done.stderr.strip()}" if done.stderr else ""
        raise EnvironmentBuildError(
            f"failed with status {done.returncode}: {' '.join(command)}{details}"
        )
    return done.stdout or ""


def say(message: str) -> None:
    """Print a line that stands out from pip's."""
    print(f"[environment] {message}", flush=True)


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
    options = parser.parse_args(arguments)
    flavour = UPSTREAM if options.upstream else FIXED
    torch = options.torch or flavour.torch

    environment = Environment(options.folder)
    stamp = options.folder / STAMP
    wanted = fingerprint(flavour, torch)
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    started = time.monotonic()
    try:
        check_machine(flavour)
        say(f"building {options.folder} with Python {platform.python_version()}")
        stamp.unlink(missing_ok=True)
        build(environment, flavour, torch)
        summary = versions(environment)
    except EnvironmentBuildError as error:
        say(str(error))
        return 1
    stamp.write_text(wanted)
    say(f"{options.folder} is ready after {time.monotonic() - started:.0f} s: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
