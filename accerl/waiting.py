"""What is shown while somebody waits: a line of tqdm in a notebook, of rich on a terminal, elsewhere nothing.

Nothing in a notebook either where `TQDM_DISABLE` is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Gives what is called with news while it lasts."""
    if _in_notebook() and not os.environ.get("TQDM_DISABLE"):  # its widget does not look
        from tqdm.notebook import tqdm

        with tqdm(bar_format="{desc} {elapsed} {postfix}", desc=what, leave=False) as line:
            yield lambda news: line.set_postfix_str(news)
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            yield lambda news: status.update(f"{what}: {news}")
    else:
        yield lambda news: None


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
