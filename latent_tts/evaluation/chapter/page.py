"""The page of the chapter: text by hand, and between two marks what is made from the kept runs.

<!-- coverage: coverage-tiny-codi -->
...
<!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path

from latent_tts.errors import UserError
from latent_tts.evaluation.chapter.tables import TABLES, table_of_kept

_BLOCK = re.compile(r"<!-- (?P<name>[\w-]+): (?P<study>[\w.-]+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(page: str, kept: Path) -> str:
    """The page with every table made anew.

    Args:
        page: Its text.
        kept: Folder of the kept runs, docs/runs.

    Raises:
        UserError: It names a table that there is not, or a study of which nothing is kept.
    """
    return _BLOCK.sub(lambda block: _made(block["name"], block["study"], kept), page)


def _made(name: str, study: str, kept: Path) -> str:
    if name not in TABLES:
        raise UserError(f"The page names a table {name!r}; there are: {', '.join(TABLES)}.")
    return f"<!-- {name}: {study} -->\n{table_of_kept(name, kept / study)}\n<!-- end -->"


def numbers_without_a_source(page: str) -> list[str]:
    """Numbers with a decimal point in the text of a section that stand in none of its tables."""
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        lines = section.splitlines()
        tables = set(_numbers("\n".join(line for line in lines if line.startswith("|"))))
        text = "\n".join(line for line in lines if not line.startswith(("|", "<!--", "!")))
        found += [number for number in _numbers(text) if number not in tables]
    return found


def _numbers(text: str) -> list[str]:
    """`12.2` of `+12.2 (-0.3 to +2.7)`; names in backticks count, as tables have them."""
    return re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)|(?<=-)\d+\.\d+(?=`)", text)
