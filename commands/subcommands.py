"""What `python evaluate.py` does beside evaluating, by its first word."""

from __future__ import annotations

SUBCOMMANDS = ("annotate", "report", "list", "inspect", "trajectories", "sweep")
"""Each is a module of `commands` with `main(args)`; help and `python -m commands` list them from here."""
