"""Where a file of the repository is in the site: a page, a part of the reference, or its text on a page of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, normpath, relpath

from docs.generator.reference import CHAPTERS, ROOT, expanded

RENAMED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "tutorials": "tutorials/index.md",
    "tutorials/README.md": "tutorials/index.md",
}
"""Path in the repository to where mkdocs believes the page to be, below docs/."""
PICTURES = {".png", ".svg", ".jpg", ".gif", ".mp4"}
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".md": "markdown", ".js": "javascript"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
MODULES = {module: chapter.source for chapter in CHAPTERS for module in expanded(chapter.modules)}


def origin_of(page: str) -> str:
    """Path in the repository of the file that a page is made from."""
    for path, place in RENAMED.items():
        if place == page and (ROOT / path).is_file():
            return path
    return page if page.startswith("tutorials/") else f"docs/{page}"


def place_of(path: str) -> str:
    """Of a file or folder of the repository, as a page at the top links to it; with an anchor where it has one."""
    if path in RENAMED:
        return RENAMED[path]
    if path.startswith(("docs/", "tutorials/")) and path.endswith((".md", ".ipynb", *PICTURES)):
        return path.removeprefix("docs/")
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if module in MODULES:
        return f"{MODULES[module]}#{module}"
    return f"files/{path}" if Path(path).suffix in PICTURES else f"files/{path}.md"


def relinked(markdown: str, page: str, wants: Callable[[str], None]) -> str:
    """The text with links into the repository turned into links into the site.

    Args:
        page: where the text is shown, below docs/.
        wants: called with each file or folder of the repository that must be shown for it.
    """
    origin = origin_of(page)

    def replaced(found: re.Match[str]) -> str:
        start, address, anchor, end = found.groups()
        path = normpath(f"{dirname(origin)}/{address}".lstrip("/"))
        if path.startswith("..") or not (ROOT / path).exists():
            return found[0]
        place = place_of(path)
        if place.startswith("files/"):
            wants(path)
        file, _, own_anchor = place.partition("#")
        anchor = f"#{own_anchor}" if own_anchor else anchor or ""
        return f"{start}{relpath(file, dirname(page) or '.')}{anchor}{end}"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(replaced, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(replaced, markdown[end:])])


def shown(path: str) -> str:
    """A file as a page: its text; a folder: what is in it."""
    target = ROOT / path
    if target.is_dir():
        entries = sorted(entry.name for entry in target.iterdir() if not entry.name.startswith(("_", ".")))
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in entries) + "\n"
    text = target.read_text()
    return f"# {path}\n\n````{LANGUAGES.get(target.suffix, 'text')}\n{text}\n````\n"
