from typing import Any

def __getattr__(name: str) -> Any: ...  # its names come from a compiled module that says nothing about types
