"""A wheel has the C++ kernels compiled in it where there is a compiler, and is pure Python where there is none.

`CXX=false pip wheel ./accerl_ext` makes a pure one anywhere. Editable installs compile at first use.
"""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface):
    PLUGIN_NAME = "custom"
    folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        library = _load(Path(self.root) / "library.py")
        self.folder = Path(tempfile.mkdtemp())
        try:
            built = library.build_ahead(self.folder)
        except library.BuildError as error:
            self.app.display_warning(f"accerl-ext: no compiled kernels in this wheel: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["force_include"][str(built)] = f"prebuilt/{built.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder)


def _load(path: Path) -> Any:
    """By its file: the package is not installed where a wheel is made."""
    spec = importlib.util.spec_from_file_location("accerl_ext_library", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
