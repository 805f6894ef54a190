"""What mkdocs needs to build a site from pages that are written for a repository.

README is the start page. Links to files outside of docs/ lead to ``repo_url`` where mkdocs.yml
has one, and are their texts otherwise.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Make README the start page."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - only `make docs` installs it

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"\]\((?!https?:|#)", "](../", readme)  # as if it lay in docs/
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Let links lead to where the site has what they name."""

    def link(found: re.Match[str]) -> str:
        image, text, place = found.groups()
        path, _, anchor = place.partition("#")
        target = (ROOT / "docs" / path).resolve()
        if target.parent == ROOT / "docs":
            return f"{image}[{text}]({target.name}{'#' + anchor if anchor else ''})"
        if config.repo_url:
            return f"[{text}]({config.repo_url}/blob/HEAD/{target.relative_to(ROOT)})"
        return text

    return _LINK.sub(link, markdown)
