"""Stored runs, read from their folders without torch.

- :mod:`~vitctl.runs.stored`: finding runs and reading their folders;
- :mod:`~vitctl.runs.query`: filtering, sorting and columns of a list of runs;
- :mod:`~vitctl.runs.comparing`: what differs between runs;
- :mod:`~vitctl.runs.removal`: deleting runs.
"""
