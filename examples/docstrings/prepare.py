"""Write a summarization corpus out of the docstrings of the installed packages.

    python -m examples.docstrings.prepare --out DIR

DIR gets the two aligned files of each split (``train.source``, ``train.target``, …), which
``deltasam prepare text`` takes, and ``corpus.json`` with packages, versions and counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from deltasam_fairseq.cli.options import add_number
from deltasam_fairseq.data.pipeline import finished_folder
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json, write_json, write_lines
from examples.docstrings.corpus import CORPUS_VERSION, Corpus, CorpusSettings, build_corpus
from examples.docstrings.harvest import harvest, package_folders, python_files

SUMMARY = "corpus.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the corpus, unless it is there."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.docstrings.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    default = CorpusSettings()
    for flag, value, text in (
        ("--min-train", default.min_train, "fewest training pairs to accept"),
        ("--valid-pairs", default.valid, "wanted number of validation pairs"),
        ("--test-pairs", default.test, "wanted number of test pairs"),
        ("--max-source-words", default.max_source_words, "sources are cut here, in words"),
        ("--workers", os.cpu_count() or 1, "processes; the result does not depend on it"),
    ):
        add_number(parser, flag, value, text)
    parser.add_argument("--force", action="store_true", help="replace one that is there")
    args = parser.parse_args(arguments)
    settings = CorpusSettings(
        min_train=args.min_train,
        valid=args.valid_pairs,
        test=args.test_pairs,
        max_source_words=args.max_source_words,
    )
    try:
        prepare(args.out, settings, workers=args.workers, force=args.force)
    except UserError as error:
        parser.error(str(error))


def prepare(out: Path, settings: CorpusSettings, *, workers: int, force: bool = False) -> None:
    """Write the corpus, or find that it is there already.

    A finished one stays as it is when packages are installed or changed later; a line says so.

    Args:
        out: The folder to make.
        settings: Limits and sizes.
        workers: Number of processes that read files.
        force: Whether to replace a corpus that is there.

    Raises:
        UserError: If the folder is something else, or a corpus of other settings.
    """
    wanted = {"corpus_version": CORPUS_VERSION, "settings": asdict(settings)}
    if out.exists() and not (out / SUMMARY).is_file():
        raise UserError(f"{out} exists and is no corpus; give another --out or remove it")
    if out.exists() and not force:
        found = read_json(out / SUMMARY)
        if any(found.get(name) != value for name, value in wanted.items()):
            raise UserError(f"{out} was made with other settings; pass --force to replace it")
        print(f"{out}: finished before; nothing to do")
        if changed := changed_packages(found["packages"]):
            print(
                f"note: {len(changed)} of its packages have another version now ({changed[0]}); "
                "--force builds it anew"
            )
        return
    began = time.monotonic()
    files = python_files(package_folders())
    print(f"reading the docstrings of {len(files)} installed modules …", flush=True)
    documented = [entry for part in harvest(files, workers=workers) for entry in part]
    corpus = build_corpus(documented, settings)
    counts = (f"{number} ({reason})" for reason, number in sorted(corpus.dropped.items()) if number)
    seconds = time.monotonic() - began
    left_out = ", ".join(counts) or "none"
    print(f"{len(documented)} docstrings, {seconds:.0f} s; left out: {left_out}", flush=True)
    with finished_folder(out) as work:
        for name, pairs in corpus.splits.items():
            write_lines(work / f"{name}.source", [pair.source for pair in pairs])
            write_lines(work / f"{name}.target", [pair.target for pair in pairs])
        summary = {**wanted, **summary_of(corpus, docstrings=len(documented))}
        write_json(work / SUMMARY, summary)


def summary_of(corpus: Corpus, *, docstrings: int) -> dict[str, object]:
    """Say what a corpus was made from.

    Args:
        corpus: The corpus.
        docstrings: Number of docstrings read.

    Returns:
        In JSON's types.
    """
    versions = installed_versions()
    packages = {
        name: {"version": versions.get(name), **counts}
        for name, counts in corpus.packages().items()
    }
    return {
        "python": platform.python_version(),
        "docstrings": docstrings,
        "dropped": dict(sorted(corpus.dropped.items())),
        "pairs": {name: len(pairs) for name, pairs in corpus.splits.items()},
        "packages": packages,
    }


def installed_versions() -> dict[str, str]:
    """Return the version of every top-level package that a distribution brought."""
    return {
        package: metadata.version(distributions[0])
        for package, distributions in metadata.packages_distributions().items()
    }


def changed_packages(packages: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Compare the packages of a corpus with what is installed now.

    Args:
        packages: Of :func:`summary_of`.

    Returns:
        One entry for each that has another version now, or none.
    """
    now = installed_versions()
    return [
        f"{name} {facts['version']} → {now.get(name, 'not installed')}"
        for name, facts in packages.items()
        if facts["version"] != now.get(name)
    ]


if __name__ == "__main__":
    main()
