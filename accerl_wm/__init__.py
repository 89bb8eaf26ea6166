"""World models for AcceRL: what plugs in is described in `accerl_wm.protocols`."""

__version__ = "0.1.0"
