"""Who takes part in the broadcasts of the weights, and where they meet; light enough for the controller."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import ray

BOARD_TIMEOUT_S = 30.0


class Epoch(NamedTuple):
    """Where the members of a group meet."""

    number: int
    host: str
    port: int


class Membership(Protocol):
    """Who takes part. A member that was started again has another token."""

    def join(self, member: str, token: str) -> Epoch | None:
        """Take part from the next epoch on; gives the present one. Joining twice is joining once."""
        ...

    def leave(self, member: str, token: str | None = None) -> None:
        """Take part no more; with a token, only if it is still that one."""
        ...

    def members(self) -> dict[str, str]:
        """Name to token."""
        ...

    def open(self, host: str, port: int) -> int:
        """Begin an epoch; gives its number, above all before, of earlier senders too."""
        ...


class GroupBoard:
    """The membership of one run, in the memory of its controller; every method returns at once."""

    def __init__(self) -> None:
        self._members: dict[str, str] = {}
        self._epoch: Epoch | None = None

    def content(self) -> dict[str, Any]:
        """JSON-compatible, for `load`."""
        return {"members": self._members, "epoch": self._epoch}

    def load(self, content: dict[str, Any]) -> None:
        """Go on with what another board held."""
        self._members = content["members"]
        self._epoch = None if content["epoch"] is None else Epoch(*content["epoch"])

    def join(self, member: str, token: str) -> Epoch | None:
        self._members[member] = token
        return self._epoch

    def leave(self, member: str, token: str | None = None) -> None:
        if token in (None, self._members.get(member)):
            self._members.pop(member, None)

    def members(self) -> dict[str, str]:
        return dict(self._members)

    def open(self, host: str, port: int) -> int:
        number = 1 if self._epoch is None else self._epoch.number + 1
        self._epoch = Epoch(number, host, port)
        return number


class RayBoard:
    """The same from another process, through the controller's `board(verb, *arguments)`."""

    def __init__(self, controller: Any):
        self._controller = controller

    def join(self, member: str, token: str) -> Epoch | None:
        return self._call("join", member, token)

    def leave(self, member: str, token: str | None = None) -> None:
        self._call("leave", member, token)

    def members(self) -> dict[str, str]:
        return self._call("members")

    def open(self, host: str, port: int) -> int:
        return self._call("open", host, port)

    def _call(self, verb: str, *arguments: Any) -> Any:
        return ray.get(self._controller.board.remote(verb, *arguments), timeout=BOARD_TIMEOUT_S)
