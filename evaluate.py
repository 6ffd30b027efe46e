"""Evaluates parallel test-time scaling of a latent reasoning model: `python evaluate.py --help`.

`python evaluate.py annotate` makes the data that a latent reward model is trained on; `report` makes the report of a run, or of
several side by side, from their records; `python -m commands` lists the others.
"""

import sys
from importlib import import_module

from commands.guard import main_guard
from commands.importing import importing
from commands.subcommands import SUBCOMMANDS


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in SUBCOMMANDS:
        with importing():
            command = import_module(f"commands.{sys.argv[1]}")
        command.main(sys.argv[2:])
        return
    with importing():
        from commands.evaluate import EvaluationCLI

    EvaluationCLI().run()


if __name__ == "__main__":
    raise SystemExit(main_guard(main, ends_process=True))
