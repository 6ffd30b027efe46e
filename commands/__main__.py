"""Lists the commands: `python -m commands`."""

from __future__ import annotations

import ast
import shutil
import textwrap
from pathlib import Path

from commands.catalogue import ROOT, first_sentence
from commands.subcommands import SUBCOMMANDS


def commands() -> dict[str, str]:
    """What is run by itself, as it is written on a command line, and the first sentence of its docstring."""
    scripts = {f"python {name}.py": ROOT / f"{name}.py" for name in ("train", "evaluate")}
    scripts |= {f"python evaluate.py {name}": ROOT / "commands" / f"{name}.py" for name in SUBCOMMANDS}
    files = [
        path for path in sorted((ROOT / "commands").glob("[a-z]*.py")) if _runs(path) and path.stem not in SUBCOMMANDS
    ]
    tools = {f"python -m commands.{path.stem}": path for path in files}
    return {name: _summary(path) for name, path in (scripts | tools).items()}


def _runs(path: Path) -> bool:
    return 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


def _summary(path: Path) -> str:
    return first_sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))


def main() -> None:
    """Prints the list; every command says more with --help."""
    found = commands()
    width, column = shutil.get_terminal_size().columns, max(map(len, found)) + 2
    for name, summary in found.items():
        lines = textwrap.wrap(summary, max(20, width - column))
        print("\n".join([f"{name:<{column}}{lines[0]}", *(" " * column + line for line in lines[1:])]))


if __name__ == "__main__":
    main()
