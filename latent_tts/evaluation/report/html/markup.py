"""HTML out of elements: text is escaped by construction, and what is not escaped had to be called `Markup`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_VOID = ("img", "input", "meta", "br")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Markup:
    """One element: attributes that are None or False are left out, True stands alone;
    `class_` and `data_x` stand for `class` and `data-x`.

    >>> element("p", "1 < 2", class_="small")
    '<p class="small">1 &lt; 2</p>'
    """
    shown = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    return Markup(f"<{name}{shown}>" if name in _VOID else f"<{name}{shown}>{joined(children)}</{name}>")


def joined(parts: Sequence[object], between: str = "") -> Markup:
    """Parts one after the other; those that are no `Markup` are escaped."""
    return Markup(between.join(part if isinstance(part, Markup) else escape(str(part)) for part in parts))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def table(name: str, header: Sequence[object], rows: Sequence[Sequence[Markup]], caption: str = "") -> Markup:
    """A table whose columns can be sorted; `cell` makes what is in `rows`.

    Args:
        name: Its id, by which the page's address names it.
        header: The names of the columns.
        rows: Cells.
        caption: What it shows, for those who hear it.
    """
    names = [element("th", element("button", text, type="button"), scope="col") for text in header]
    head = element("thead", element("tr", *names))
    body = element("tbody", *(element("tr", *row) for row in rows))
    inner = element("table", element("caption", caption), head, body, id=name, class_="sortable")
    return element("div", inner, class_="scroll")


def cell(shown: object, value: float | str | None = None, heading: bool = False) -> Markup:
    """One cell of a table: what is shown, and what it is sorted by (what is shown, where it is left out)."""
    number = isinstance(value, (int, float))
    return element(
        "th" if heading else "td",
        shown,
        scope="row" if heading else None,
        class_="number" if number else None,
        data_sort=f"{value:.12g}" if isinstance(value, (int, float)) else value,
    )
