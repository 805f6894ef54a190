"""The installed packages as the origin of a data folder."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from deltasam_fairseq.data.aligned import Aligned
from deltasam_fairseq.data.docstring_harvest import harvest, package_folders, python_files
from deltasam_fairseq.data.docstrings import CORPUS_VERSION, Corpus, CorpusSettings, build_corpus
from deltasam_fairseq.data.pipeline import Origin

SUMMARY = "corpus.json"


def docstring_origin(
    settings: CorpusSettings, *, workers: int, say: Callable[[str], None] = print
) -> Origin:
    """Describe the corpus that the docstrings of the installed packages make.

    The installed versions are recorded but are no input: a finished corpus
    stays valid when another package is installed later;
    see :func:`changed_packages`.

    Args:
        settings: Limits and sizes.
        workers: Number of processes that read files.
        say: Told what happens, line by line.

    Returns:
        What :func:`~deltasam_fairseq.data.pipeline.prepare` takes; the folder
        gets a ``corpus.json`` with packages, versions, counts.
    """

    def load(folder: Path) -> Mapping[str, Aligned]:
        began = time.monotonic()
        files = python_files(package_folders())
        say(f"reading the docstrings of {len(files)} installed modules …")
        documented = [entry for part in harvest(files, workers=workers) for entry in part]
        corpus = build_corpus(documented, settings)
        seconds = time.monotonic() - began
        say(f"{len(documented)} docstrings, {seconds:.0f} s; left out: {_counts(corpus.dropped)}")
        write_summary(corpus, folder / SUMMARY, docstrings=len(documented))
        return corpus.aligned()

    return Origin("docstrings", {"corpus_version": CORPUS_VERSION, **asdict(settings)}, load)


def write_summary(corpus: Corpus, path: Path, *, docstrings: int) -> None:
    """Write what a corpus was made from.

    Args:
        corpus: The corpus.
        path: JSON file to write.
        docstrings: Number of docstrings read.
    """
    versions = installed_versions()
    packages = {
        name: {"version": versions.get(name), **counts}
        for name, counts in corpus.packages().items()
    }
    summary = {
        "corpus_version": CORPUS_VERSION,
        "python": platform.python_version(),
        "docstrings": docstrings,
        "dropped": dict(sorted(corpus.dropped.items())),
        "pairs": {name: len(pairs) for name, pairs in corpus.splits.items()},
        "packages": packages,
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def installed_versions() -> dict[str, str]:
    """Return the version of every top-level package that a distribution brought."""
    return {
        package: metadata.version(distributions[0])
        for package, distributions in metadata.packages_distributions().items()
    }


def changed_packages(folder: Path) -> list[str]:
    """Compare a finished corpus with what is installed now.

    Args:
        folder: A data folder made from docstrings.

    Returns:
        One entry for each package of the corpus that has another version now, or none.
    """
    packages = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["packages"]
    now = installed_versions()
    return [
        f"{name} {facts['version']} → {now.get(name, 'not installed')}"
        for name, facts in packages.items()
        if facts["version"] != now.get(name)
    ]


def _counts(dropped: Mapping[str, int]) -> str:
    counts = (f"{number} ({reason})" for reason, number in sorted(dropped.items()) if number)
    return ", ".join(counts) or "none"
