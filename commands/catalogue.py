"""What there is to choose from, read from the sources: listing the trainings does not import them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Entry:
    """A class of a package: where it is, and the first sentence of its docstring."""

    name: str
    module: str
    summary: str


def classes_below(base: str, package: str) -> dict[str, Entry]:
    """The classes of a package that are derived, over any number of steps, from a class of this name; no bases of others."""
    found, bases = {}, {}
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(parent).rpartition(".")[2] for parent in node.bases]
                found[node.name] = Entry(node.name, module, first_sentence(ast.get_docstring(node)))
    below = [name for name in found if base in _ancestors(name, bases)]
    above = {parent for name in below for parent in bases[name]}
    return {name: found[name] for name in below if name not in above}


def _ancestors(name: str, bases: dict[str, list[str]]) -> Iterator[str]:
    for parent in bases.get(name, []):
        yield parent
        yield from _ancestors(parent, bases)


def first_sentence(docstring: str | None) -> str:
    """The first sentence of a docstring on one line, without its last full stop."""
    text = " ".join((docstring or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[^.])\.(?: |$)", text)[0].rstrip(".:")


def import_named(texts: Iterable[str], entries: Iterable[Entry]) -> None:
    """Imports the modules of the classes that a command line or file names, so that short names are known."""
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    for entry in entries:
        if entry.name in words and entry.module not in sys.modules:
            import_module(entry.module)
