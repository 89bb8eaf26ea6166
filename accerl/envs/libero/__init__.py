"""LIBERO behind the `Env` protocol, and what belongs to it."""
