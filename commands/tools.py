"""What the tools share: options out of a function's signature or of argparse, and one sentence for a wrong one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from commands.guard import main_guard
from latent_tts.errors import UserError
from latent_tts.files.folders import why_unwritable


class ToolArguments(argparse.ArgumentParser):
    """argparse that raises what is wrong instead of printing usage; no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, after values that are empty have been refused."""
        from commands.explain import refuse_empty_values

        refuse_empty_values(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}; --help lists the options.")


def folder(text: str) -> Path:
    """The folder that an option names, which may have to be made.

    Raises:
        ArgumentTypeError: There is a file of that name, or nothing can be written there.
    """
    if Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is a file, where a folder is meant")
    if (reason := why_unwritable(Path(text))) is not None:
        raise argparse.ArgumentTypeError(f"cannot write to {text}: {reason}")
    return Path(text)


def run_tool(main: Callable[..., None], args: Sequence[str] | None = None) -> int:
    """Runs a function with options made of its signature and docstring, and returns the exit code.

    Args:
        main: The function; its parameters are the options.
        args: The command line; that of this process where it is left out.
    """
    return main_guard(lambda: _run(main, list(sys.argv[1:] if args is None else args)))


def _run(main: Callable[..., None], args: list[str]) -> None:
    from jsonargparse import auto_cli, set_parsing_settings

    from commands.explain import BadOptionError, OneSentenceParser, explain, refuse_empty_values

    refuse_empty_values(args)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        auto_cli(main, args=args, as_positional=False, parser_class=OneSentenceParser)
    except BadOptionError as error:
        raise UserError(explain(error.parser, args) or str(error)) from error
