"""The documentation site: hand-written pages, stored tutorials, docstrings.

docs/*.md, README, CHANGELOG ──┐
tutorials/*.ipynb (stored) ────┼─► mkdocs, with these hooks ─► site/ ─► check: every link inside exists, nothing is
docstrings, command line ──────┘                                         loaded from elsewhere

    python -m docs.generator     # what `make docs` runs
"""
