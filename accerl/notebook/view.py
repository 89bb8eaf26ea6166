"""What every view is: a widget while a kernel runs, a page without one, a picture where neither can be shown."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any, ClassVar

import anywidget

STATIC = Path(__file__).parent / "static"


def script(name: str) -> str:
    """The shared functions and those of a view, one text; it defines `render({ model, el })` and exports nothing."""
    return (STATIC / "base.js").read_text() + (STATIC / f"{name}.js").read_text()


def style(name: str) -> str:
    """The shared rules and, where there are any, those of a view."""
    own = STATIC / f"{name}.css"
    return (STATIC / "base.css").read_text() + (own.read_text() if own.exists() else "")


def assets(name: str) -> dict[str, str]:
    """`_esm` and `_css` of the widget that static/NAME.js draws."""
    return {"_esm": script(name) + "\nexport default { render };\n", "_css": style(name)}


class View(anywidget.AnyWidget):
    """A widget with two more forms. What a subclass synchronizes is all that its script may draw from.

    A subclass says `name`, takes `_esm` and `_css` from `assets`, and has `png`.
    """

    name: ClassVar[str]
    """Of the script in static/."""

    def png(self) -> bytes:
        """The picture of the present state."""
        raise NotImplementedError

    def html(self, picture: bytes | None = None) -> str:
        """The present state as a piece of a page that needs neither a kernel nor a network.

        Args:
            picture: for readers where scripts are not run; None: `png`.
        """
        place = f"accerl-{uuid.uuid4().hex[:12]}"
        shown = _base64(picture or self.png())
        state = json.dumps(_jsonable(self._synchronized())).replace("</", "<\\/")
        return (
            f"<style>{style(self.name)}</style>"
            f'<div id="{place}"><img alt="{self.name}" src="data:image/png;base64,{shown}"></div>'
            f'<script type="module">{script(self.name)}\n'
            f'{{ const el = document.getElementById("{place}"); el.replaceChildren();\n'
            f"render({{ model: frozen({state}), el }}); }}</script>"
        )

    def save(self, path: str | Path) -> Path:
        """Write a page (.html) or a picture (.png).

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        match path.suffix:
            case ".html":
                head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
                path.write_text(f"{head}<title>{self.name}</title>{self.html()}")
            case ".png":
                path.write_bytes(self.png())
            case suffix:
                raise ValueError(f"path: {suffix!r} cannot be written; .html and .png can")
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """All three forms: a stored notebook shows the best that its reader can."""
        live = super()._repr_mimebundle_(**kwargs)
        data, metadata = live if live is not None else ({}, {})
        picture = self.png()
        return {**data, "text/html": self.html(picture), "image/png": _base64(picture)}, metadata

    def _synchronized(self) -> dict[str, Any]:
        own = [key for key in self.keys if not key.startswith("_") and key not in ("layout", "tabbable", "tooltip")]
        return self.get_state(own)


def _jsonable(value: Any) -> Any:
    """Bytes become an object that `frozen` turns into the DataView that a live widget gets."""
    match value:
        case bytes() | bytearray() | memoryview():
            return {"$bytes": _base64(bytes(value))}
        case dict():
            return {key: _jsonable(each) for key, each in value.items()}
        case list() | tuple():
            return [_jsonable(each) for each in value]
    return value


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
