"""Whether a Ray cluster is there and lets this process in, before it is joined: Ray itself would try for a minute."""

from __future__ import annotations

import os
from typing import Any

from accerl.config import ConfigError

ANSWER_WITHIN_S = 3.0


def knock(address: str) -> bool:
    """Whether the cluster asks for a token, found in a second and without joining it.

    It imports Ray, so that what Ray reads from the environment must be set before (`cluster.set_environment`).

    Raises:
        ConfigError: that is no address.
        ConnectionError: no cluster is there, or the token of this process is not the cluster's.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in address:
        raise ConfigError(f"cluster: {address!r} is no address; give host:port, as `ray start --head` prints it")
    if _answers(address, None):
        return False
    token, origin = _own_token()
    if token is None or not _answers(address, token):
        reason = "there is none here" if token is None else f"that of {origin} is another"
        raise ConnectionError(
            f"the cluster at {address} asks for a token and {reason}; set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN_PATH to a file with the token that its head was started with"
        )
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ConnectionError(
            f"the cluster at {address} asks for a token; the one of {origin} fits, but is not used; "
            f"set RAY_AUTH_MODE=token"
        )
    return True


def _answers(address: str, token: str | None) -> bool:
    """Whether the head answers to who shows this token, or none.

    Raises:
        ConnectionError: nobody answers, or not as a head would.
    """
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token is not None else None
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(
                b"", timeout=ANSWER_WITHIN_S, metadata=metadata
            )
        except grpc.RpcError as error:
            refusal: Any = error
            if refusal.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise ConnectionError(
                f"no Ray cluster answers at {address} ({refusal.details()}); start one with `ray start --head`, "
                f"or see what its port is"
            ) from None
    return True


def _own_token() -> tuple[str | None, str]:
    """The token that Ray would show from this process, and where it comes from."""
    from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]
    from ray.exceptions import AuthenticationError

    origin = "RAY_AUTH_TOKEN"
    if not os.environ.get(origin):
        origin = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return loader.get_raw_token(ignore_auth_mode=True) or None, origin
    except AuthenticationError:
        return None, origin
