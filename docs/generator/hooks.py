"""What mkdocs is told beyond mkdocs.yml: pages that are not in docs/, links into the repository, equations.

Equations become MathML when the site is built, which browsers draw without a script.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

from docs.generator import places, reference
from docs.generator.reference import ROOT

TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.ipynb"))
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
IN_NOTEBOOKS = re.compile(r"<(pre|code|script|style)\b.*?</\1>|\$\$(.+?)\$\$|\$(?=[^\s$])([^$<]+?)(?<=\S)\$", re.DOTALL)
OF_OTHERS = re.compile(
    r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->|<script type=\"module\">.*?mermaid.*?</script>"
    r"|<script>(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>",
    re.DOTALL,
)
"""What nbconvert would fetch from elsewhere."""
NOT_SEARCHED = ('<div class="clipboard-copy-txt"', '<span class="notice"')
"""What a button copies, which is in the page a second time, and what it says."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as GitHub makes them; tutorials and chapters of the reference into the navigation."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    chapters = [{chapter.title: chapter.source} for chapter in reference.CHAPTERS]
    filled = {
        "Tutorials": [{"All": "tutorials/index.md"}, *({_title(path): f"tutorials/{path.name}"} for path in TUTORIALS)],
        "Reference": [{"Command line": reference.COMMAND_LINE}, *chapters],
    }
    parts: list[dict[str, Any]] = config.nav or []
    config.nav = [{name: filled.get(name, pages) for name, pages in part.items()} for part in parts]
    if (ROOT / "SECURITY.md").is_file():
        parts[0]["Overview"].append({"Security": "security.md"})
    return config


@event_priority(100)  # before the plugin that looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs/."""
    for path, page in places.RENAMED.items():
        if (ROOT / path).is_file():
            files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for path in TUTORIALS:
        files.append(File(f"tutorials/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    for chapter in reference.CHAPTERS:
        files.append(File.generated(config, chapter.source, content=chapter.markdown()))
    files.append(File.generated(config, reference.COMMAND_LINE, content=reference.command_line()))
    _add_linked(files, config)
    return files


def _add_linked(files: Files, config: MkDocsConfig) -> None:
    """Files of the repository that some page leads to."""
    wanted: set[str] = set()
    for file in list(files.documentation_pages()):
        if file.src_uri.endswith(".md"):
            places.relinked(file.content_string, file.src_uri, wanted.add)
    for path in sorted(wanted):
        place = places.place_of(path)
        if place.endswith(".md"):
            out_of_nav = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, place, content=places.shown(path), inclusion=out_of_nav))
        else:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith(("reference/", "files/")):
        return markdown
    return places.relinked(markdown, page.file.src_uri, lambda path: None)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.endswith(".ipynb"):
        for start in NOT_SEARCHED:
            content = content.replace(start, f"{start} data-search-exclude")
        return IN_NOTEBOOKS.sub(_in_notebook, OF_OTHERS.sub("", content))
    content = DISPLAY.sub(lambda found: _equation(found[1], "block"), content)
    return INLINE.sub(lambda found: _equation(found[1], "inline"), content)


def _in_notebook(found: re.Match[str]) -> str:
    if found[1]:
        return found[0]
    return _equation(found[2], "block") if found[2] else _equation(found[3], "inline")


def _equation(latex: str, display: Any) -> str:
    return convert(html.unescape(latex).strip(), display=display)


def _title(path: Path) -> str:
    """The first heading of a notebook, with its number."""
    for cell in json.loads(path.read_text())["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return f"{path.stem[:2]} {re.sub(r'^[0-9]+[.:]? ', '', line[2:].strip())}"
    raise ValueError(f"{path}: has no heading")
