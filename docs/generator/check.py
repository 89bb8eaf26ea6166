"""Is a built site whole, and does it need nothing but itself? Every page is read, no script is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
    "use": ("href",),
}
"""Attributes whose target a browser fetches by itself."""
SELF_CONTAINED = ("data:", "blob:", "about:")
IN_STYLES = re.compile(r"""url\(\s*["']?(?!["']?data:)([^"')]+)|@import\s+["']([^"']+)""")
IN_SCRIPTS = re.compile(r"""(?:\bfrom|\bimport\s*\(|\bimport)\s*["'](https?:[^"']+)""")


@dataclass
class Page(HTMLParser):
    """What a page fetches, where it leads, and what can be led to in it."""

    text: str
    fetched: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self._inside = tag
        self.anchors.update(value for name, value in found.items() if name == "id" or (tag == "a" and name == "name"))
        for name in LOADS.get(tag, ()):
            if name in found and found.get("rel") != "canonical":
                self.fetched += _addresses(name, found[name])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "srcdoc" in found:
            self.fetched += Page(found["srcdoc"]).fetched
        self.fetched += _in_style(found.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.fetched += _in_style(data)
        elif self._inside == "script":
            self.fetched += IN_SCRIPTS.findall(data)


def problems(site: Path) -> list[str]:
    """Sentences that name a page and what is wrong with it; none: it is whole."""
    return [
        f"{path.relative_to(site)}: {said}" for path in sorted(site.rglob("*.html")) for said in _of(path, site)
    ] + [
        f"{path.relative_to(site)}: {said}"
        for path in sorted(site.rglob("*.css"))
        for address in _in_style(path.read_text())
        if (said := _missing(address, path, site) if is_inside(address) else f"fetches {address}")
    ]


def is_inside(address: str) -> bool:
    """A part of the site, not an address elsewhere."""
    parts = urlsplit(address)
    return not (parts.scheme or parts.netloc)


def _of(path: Path, site: Path) -> Iterator[str]:
    page = _page(path)
    for address in page.fetched:
        if not is_inside(address):
            if not address.startswith(SELF_CONTAINED):
                yield f"fetches {address}"
        elif said := _missing(address, path, site):
            yield said
    for address in page.links:
        if is_inside(address) and (said := _missing(address, path, site)):
            yield said


def _missing(address: str, path: Path, site: Path) -> str:
    """What is not there, of an address that stands in the file at `path`."""
    parts = urlsplit(address)
    base = site if parts.path.startswith("/") else path.parent
    target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(site.resolve()) or not target.exists():
        return f"leads to {address}, which is not there"
    anchor = unquote(parts.fragment)
    if anchor and target.suffix == ".html" and not anchor.startswith("__") and anchor not in _page(target).anchors:
        return f"leads to {address}, which has no such anchor"
    return ""


@cache
def _page(path: Path) -> Page:
    return Page(path.read_text())


def _addresses(name: str, value: str) -> list[str]:
    return [entry.split()[0] for entry in value.split(",") if entry.split()] if name == "srcset" else [value]


def _in_style(text: str) -> list[str]:
    return [first or second for first, second in IN_STYLES.findall(text)]
