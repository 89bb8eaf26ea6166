"""The roles on Ray actors. Each has `run`, which returns when its work is done, `health` and `flush`.

A module for each, which is all that its process imports: playing and replaying need no torch.
"""
