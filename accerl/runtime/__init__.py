"""Places the roles: in one process (`inline`) or on Ray actors. The only package that knows Ray."""
