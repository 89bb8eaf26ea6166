from typing import Any

class constexpr(Any): ...  # noqa: N801

def __getattr__(name: str) -> Any: ...
