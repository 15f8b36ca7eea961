"""What `mkdocs build` does beside the pages of this folder.

README.md is the first page, and a file of the repository that a page links to comes along, so that every link leads
somewhere in the site too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"""(?:(?<=\]\()|(?<=src="))(?!https?:|#|mailto:)([^)"#\s]+)""")


def in_site(path: str) -> str:
    """Where a file of the repository stands in the site (path: from the root of either)."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def with_links(text: str, path: str) -> tuple[str, set[str]]:
    """The text of a page whose links hold in the site, and the files of the repository that it links to."""
    linked: set[str] = set()

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        if not (ROOT / target).is_file():
            return match[1]
        linked.add(target)
        return posixpath.relpath(in_site(target), posixpath.dirname(in_site(path)) or ".")

    return LINK.sub(moved, text), linked


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md, what the navigation names, and whatever these and the pages of docs/ link to."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *pages]
    done = set(waiting)
    while waiting:
        path = waiting.pop()
        if path.endswith(".md"):
            text, linked = with_links((ROOT / path).read_text(encoding="utf-8"), path)
            waiting += sorted(linked - done)
            done |= linked
            new = File.generated(config, in_site(path), content=text)
        elif path.startswith("docs/"):
            continue
        else:
            new = File.generated(config, in_site(path), abs_src_path=str(ROOT / path))
        if (old := files.get_file_from_path(new.src_uri)) is not None:
            files.remove(old)
        files.append(new)
    return files
