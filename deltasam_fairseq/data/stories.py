"""The official files of CNN/DailyMail: one ``.story`` per article, and lists of addresses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deltasam_fairseq.data.aligned import Aligned, read_lines
from deltasam_fairseq.data.prepared import SPLITS
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import file_sha256

#: Names of the lists and of the folders of each split, in the order they are looked for.
LISTS = {"train": ("all_train.txt",), "valid": ("all_val.txt", "all_valid.txt")}
LISTS["test"] = ("all_test.txt",)
FOLDERS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("test",),
}

_HIGHLIGHT = "@highlight"
_ENDS = (".", "!", "?", "...", "'", "`", '"', "\u2019", "\u201d", ")")
# "(CNN) -- ", "LONDON, England (CNN) -- ", "(CNN)", "CNN -- ", at the beginning only.
_PLACE = r"(?:(?:[A-Z][\w.'\u2019/-]*|of|the|and|de|du|la|le|al|near|off|aboard)[,;]?\s){1,8}"
_AGENCY = r"(?:\(\s?CNN(?: [\w ]{1,20})?\s?\)\s*(?:--?|\u2013|\u2014)?|CNN\s*--)"
_BYLINE = re.compile(rf"^(?:(?=[A-Z]){_PLACE})?{_AGENCY}\s*")
_PROGRESS = 50_000


@dataclass(frozen=True)
class StoryFiles:
    """Where the stories are.

    Args:
        folders: Folders of ``.story`` files, searched below as well. Without lists,
            one folder that holds ``train``, ``valid`` (or ``val``) and ``test``.
        url_lists: Folder with ``all_train.txt``, ``all_val.txt`` and
            ``all_test.txt``, one address per line; a story is named after the
            SHA-1 of its address. None for folders by split.
    """

    folders: tuple[Path, ...]
    url_lists: Path | None = None

    def hashes(self) -> dict[str, str]:
        """Return the paths, and hash the lists; to hash the stories themselves would be slow."""
        found = {"stories": ", ".join(str(folder.resolve()) for folder in self.folders)}
        if self.url_lists:
            for name in SPLITS:
                found[f"{name}.urls"] = file_sha256(_list_of(self.url_lists, name))
        return found


def parse_story(text: str) -> tuple[str, str]:
    r"""Split a story into article and summary, each on one line.

    Args:
        text: Content of a ``.story`` file.

    Returns:
        Article, and highlights one after another, with a full stop where an end is missing.

    Example:
        >>> parse_story("It rained.\n\nThen it stopped\n\n@highlight\n\nRain in May\n")
        ('It rained. Then it stopped.', 'Rain in May.')
    """
    article: list[str] = []
    highlights: list[str] = []
    side = article
    # Not splitlines(): it also breaks at characters that stand inside sentences here.
    for line in text.split("\n"):
        words = " ".join(line.split())
        if words.startswith(_HIGHLIGHT):
            side = highlights
        elif words:
            side.append(words if words.endswith(_ENDS) else f"{words}.")
    return " ".join(article), " ".join(highlights)


def strip_byline(article: str) -> str:
    """Remove the agency from the beginning of an article.

    Returns:
        The article without ``(CNN) --`` and the place before it.

    Example:
        >>> strip_byline("LONDON, England (CNN) -- Harry Potter gains access")
        'Harry Potter gains access'
    """
    return _BYLINE.sub("", article, count=1)


def read_stories(files: StoryFiles, *, workers: int = 1, say: Say = print) -> dict[str, Aligned]:
    """Read the stories of all splits, with empty articles and summaries, by threads."""
    paths = _by_list(files, say) if files.url_lists else _by_folder(files)
    splits = {}
    for name in SPLITS:
        if not paths[name]:
            raise UserError(
                f"no story of the split {name} in {', '.join(map(str, files.folders))}; the "
                "official archives unpack to cnn/stories and dailymail/stories"
            )
        say(f"reading {len(paths[name])} {name} stories …")
        splits[name] = _read(paths[name], workers, say)
    return splits


def _by_list(files: StoryFiles, say: Say) -> dict[str, list[Path]]:
    there = {path.stem: path for folder in files.folders for path in _stories(folder)}
    paths = {}
    for name in SPLITS:
        urls = read_lines(_list_of(files.url_lists or Path(), name))
        stems = [hashlib.sha1(url.encode()).hexdigest() for url in urls if url]
        paths[name] = [there[stem] for stem in stems if stem in there]
        if missing := len(stems) - len(paths[name]):
            say(f"{name}: {missing} of {len(stems)} addresses have no story; they are left out")
    return paths


def _list_of(folder: Path, split: str) -> Path:
    for name in LISTS[split]:
        if (path := folder / name).is_file():
            return path
    raise UserError(
        f"{folder} has no {LISTS[split][0]}; the lists of the usual split are all_train.txt, "
        "all_val.txt and all_test.txt of github.com/abisee/cnn-dailymail, folder url_lists"
    )


def _by_folder(files: StoryFiles) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for split in SPLITS:
        named = [folder / name for folder in files.folders for name in FOLDERS[split]]
        paths[split] = [path for folder in named if folder.is_dir() for path in _stories(folder)]
    if not any(paths.values()):
        raise UserError(
            f"{', '.join(map(str, files.folders))}: no folders train, valid and test with .story "
            "files in them; give the lists of addresses with --url-lists"
        )
    return paths


def _stories(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    yield from sorted(folder.rglob("*.story"))


def _read(paths: Sequence[Path], workers: int, say: Say) -> Aligned:
    pair = Aligned([], [])
    with ThreadPoolExecutor(workers) as pool:
        for done, (article, summary) in enumerate(pool.map(_read_one, paths), start=1):
            pair.sources.append(article)
            pair.targets.append(summary)
            if done % _PROGRESS == 0:
                say(f"  {done} of {len(paths)}")
    return pair


def _read_one(path: Path) -> tuple[str, str]:
    try:
        return parse_story(path.read_bytes().decode())  # as text, a lone \r would end a line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "unpack the archive again"
        ) from None
