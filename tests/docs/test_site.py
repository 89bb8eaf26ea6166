"""The documentation site: what is in it, where its links lead, and that it is whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import accerl
from docs.generator import check, places, reference

ROOT = Path(__file__).parents[2]


def pages_of(nav: Any) -> Iterator[str]:
    match nav:
        case str():
            yield nav
        case dict():
            for each in nav.values():
                yield from pages_of(each)
        case list():
            for each in nav:
                yield from pages_of(each)


def test_the_navigation_lists_every_page_and_nothing_else():
    listed = set(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    made = {place for path, place in places.RENAMED.items() if (ROOT / path).exists()} | {reference.COMMAND_LINE}
    assert listed | {"security.md"} == written | made | {"security.md"}


def test_every_module_of_the_reference_exists_and_stands_there_once():
    modules = [name for chapter in reference.CHAPTERS for name in reference.expanded(chapter.modules)]
    assert len(modules) == len(set(modules))
    assert {"accerl.protocols", "accerl.rl.objectives", "accerl_ext.gae", "accerl_wm.protocols"} <= set(modules)
    with pytest.raises(ValueError, match=r"accerl\.nowhere"):
        reference.expanded(("accerl.nowhere",))


def test_every_public_name_of_accerl_has_its_home_in_the_reference():
    homes = {getattr(accerl, name).__module__ for name in accerl.__all__}
    assert homes <= set(places.MODULES)


def test_the_command_line_page_has_every_command_and_its_options():
    page = reference.command_line()
    for words in ("## accerl train", "## accerl doctor", "## accerl wm audit", "--learner.policy-lr", "--held-out"):
        assert words in page


@pytest.mark.parametrize(
    ("page", "written", "becomes"),
    [
        ("index.md", "[a](docs/learner.md#loss)", "[a](learner.md#loss)"),
        ("index.md", "[a](accerl/types.py)", "[a](reference/protocols.md#accerl.types)"),
        ("index.md", "[a](tutorials)", "[a](tutorials/index.md)"),
        ("learner.md", "[a](../accerl/rl/objectives.py)", "[a](reference/mathematics.md#accerl.rl.objectives)"),
        ("learner.md", "[a](../accerl/recipes/libero.toml)", "[a](files/accerl/recipes/libero.toml.md)"),
        ("learner.md", "[a](../benchmarks/results/scaling.png)", "[a](files/benchmarks/results/scaling.png)"),
        ("how_to/resume.md", "[a](../survival.md)", "[a](../survival.md)"),
        ("how_to/resume.md", "[a](../../tutorials/09_attach.ipynb)", "[a](../tutorials/09_attach.ipynb)"),
        ("tutorials/index.md", "[a](09_attach.ipynb)", "[a](09_attach.ipynb)"),
        ("index.md", "[a](https://example.org)", "[a](https://example.org)"),
        ("index.md", "[a](nowhere.md)", "[a](nowhere.md)"),
        ("index.md", "```\n[a](accerl/types.py)\n```", "```\n[a](accerl/types.py)\n```"),
    ],
)
def test_links_into_the_repository_become_links_into_the_site(page: str, written: str, becomes: str):
    assert places.relinked(written, page, lambda path: None) == becomes


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<a href="other.html#there">', ""),
        ('<a href="https://example.org">', ""),
        ('<img src="data:image/png;base64,AA">', ""),
        ('<a href="gone.html">', "leads to gone.html, which is not there"),
        ('<a href="other.html#gone">', "leads to other.html#gone, which has no such anchor"),
        ('<a href="../outside.html">', "leads to ../outside.html, which is not there"),
        ('<img src="https://example.org/a.png">', "fetches https://example.org/a.png"),
        ('<script src="//example.org/a.js">', "fetches //example.org/a.js"),
        ('<script>import("https://example.org/a.js")</script>', "fetches https://example.org/a.js"),
        ("<style>@import 'https://example.org/a.css';</style>", "fetches https://example.org/a.css"),
        ('<p style="background: url(https://example.org/a.png)">', "fetches https://example.org/a.png"),
        ('<iframe srcdoc="&lt;img src=https://example.org/a.png&gt;">', "fetches https://example.org/a.png"),
    ],
)
def test_the_check_finds_what_is_not_there_and_what_comes_from_elsewhere(tmp_path: Path, body: str, said: str):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "outside.html").touch()
    (site / "other.html").write_text('<p id="there">')
    (site / "page.html").write_text(body)
    assert check.problems(site) == ([f"page.html: {said}"] if said else [])


@pytest.mark.slow
def test_the_whole_site_is_built_without_a_warning_and_needs_nothing_but_itself(tmp_path: Path):
    for package in ("mkdocs_jupyter", "mkdocstrings", "material", "latex2mathml"):
        pytest.importorskip(package, reason="needs the extra `docs`: make docs")
    site = tmp_path / "site"
    built = [sys.executable, "-m", "docs.generator", "--site", str(site)]
    ended = subprocess.run(built, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not ended.stderr
    for notebook in (ROOT / "tutorials").glob("[0-9]*.ipynb"):
        assert (site / "tutorials" / f"{notebook.stem}.html").exists()
    equations = (site / "reference" / "mathematics.html").read_text()
    assert "<math" in equations and "arithmatex" not in equations
