"""The types of options: what they take, which classes their objects may have, and how they are put in words."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser


def options_of(cls: type) -> ArgumentParser:
    """A parser whose options are the parameters of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    return parser


def accepts(hint: Any, value: Any, flag: bool) -> bool:
    """Whether an option of a type takes a value, given as text on the command line or as YAML."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=hint)
    try:
        parser.parse_args([f"--x={value}"]) if flag else parser.parse_object({"x": value})
    except (ArgumentError, ValueError, TypeError, SystemExit):
        return False
    return True


def class_named(name: str, hint: Any) -> type | None:
    """The class of a path, or of a short name among those that fit a type; None where there is none."""
    module, _, short = name.rpartition(".")
    if not module:
        fitting = (cls for base in object_types(hint) for cls in concrete(base))
        return next((cls for cls in fitting if cls.__name__ == short), None)
    try:
        found = getattr(import_module(module), short)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if inspect.isclass(found) else None


def object_types(hint: Any) -> list[type]:
    """The classes in a type whose values are objects with options of their own."""
    if inspect.isclass(hint) and get_origin(hint) is None:
        plain = hint is Any or hint.__module__ == "builtins" or issubclass(hint, Path | str)
        return [] if plain else [hint]
    return [cls for part in get_args(hint) if part is not Literal for cls in object_types(part)]


def concrete(base: type) -> Iterator[type]:
    """The classes that can be made among a class and those derived from it, as far as they are imported."""
    if not inspect.isabstract(base):
        yield base
    derived: type
    for derived in base.__subclasses__():
        yield from concrete(derived)


def item_type(hint: Any) -> Any:
    """The type of a list's entries."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) in (list, tuple, Sequence) or str(get_origin(part)).endswith(("Iterable'>", "Sequence'>")):
            return get_args(part)[0]
    return Any


def describe(hint: Any) -> str:
    """A type in words: `int or null`, `one of 'float32', 'bfloat16'`."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if is_dataclass(hint):
        return f"the options of {getattr(hint, '__name__', hint)}"
    if get_args(hint) and str(get_origin(hint)) in ("typing.Union", "<class 'types.UnionType'>"):
        return " or ".join(dict.fromkeys(map(describe, get_args(hint))))
    if hint is type(None):
        return "null"
    if get_args(hint):
        return f"a {get_origin(hint).__name__} of {' and '.join(describe(part) for part in get_args(hint))}"
    return hint.__name__ if inspect.isclass(hint) else "object"
