"""Build the site into a folder and check it; exit code 1 if anything is amiss."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from docs.generator.check import problems

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="folder for the pages, made anew")
    site = parser.parse_args().site
    began = time.monotonic()
    build(site)
    found = problems(site)
    for problem in found:
        print(problem, file=sys.stderr)
    pages = len(list(site.rglob("*.html")))
    print(f"{pages} pages in {time.monotonic() - began:.0f} s, {len(found)} problems: {site / 'index.html'}")
    return 1 if found else 0


def build(site: Path) -> None:
    """Raises mkdocs' Abort if there is a single warning."""
    os.environ["NO_MKDOCS_2_WARNING"] = "1"  # a notice to whoever chooses a generator
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # stored pictures have no texts
    build_site(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(site.resolve())))


if __name__ == "__main__":
    sys.exit(main())
