"""Help that can be read: titles that fit the terminal, what there is to train by name, no list of every trainer option."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Collection, Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from commands.catalogue import Entry


class HelpFormatter(DefaultHelpFormatter):
    """Breaks usage and the titles of groups where the terminal ends."""

    def add_usage(self, usage: str | None, *args: Any, **kwargs: Any) -> None:
        lines = textwrap.wrap(usage, self._width - len("usage: "), break_long_words=False) if usage else []
        super().add_usage(("\n" + " " * len("usage: ")).join(lines) or usage, *args, **kwargs)

    def start_section(self, heading: str | None) -> None:
        super().start_section("\n".join(textwrap.wrap(heading, self._width)) if heading else heading)


def show_trainer_options(parser: LightningArgumentParser, shown: Collection[str], title: str) -> None:
    """Leaves the trainer's other options out of `--help`, where they have no use; they are accepted all the same."""
    for action in parser._actions:
        group, _, option = action.dest.partition(".")
        if group == "trainer" and option and option.partition(".")[0] not in shown:
            action.help = argparse.SUPPRESS
    _entitle(parser, "trainer", title)


def offer(parser: LightningArgumentParser, option: str, title: str, entries: Iterable[Entry]) -> None:
    """Makes the help of an option that takes a class say which there are."""
    listed = "; ".join(f"{entry.name}: {entry.summary}" for entry in entries)
    for action in parser._actions:
        if action.dest == option:
            action.help = (
                f"One of these classes, or the path of another. {listed}. --{option}.help CLASS lists its options"
            )
        elif action.dest == f"{option}.help":
            action.help = "Show the options of a class, and exit"
    _entitle(parser, option, title)


def _entitle(parser: LightningArgumentParser, option: str, title: str) -> None:
    for group in parser._action_groups:
        if any(action.dest == option or action.dest.startswith(f"{option}.") for action in group._group_actions):
            group.title = title
