"""A whole page around its sections: the template, the style and the scripts that lie beside this file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from string import Template

from latent_tts.evaluation.report.html.markup import Markup, element, joined

_SCRIPTS = ("address.js", "tables.js", "payload.js", "problem.js", "browser.js")


def document(heading: str, body: Mapping[str, Markup], payload: Iterable[Markup] = ()) -> Iterator[str]:
    """A whole page: sections that have something to show, then what the browser takes apart by itself."""
    shown = {name: content for name, content in body.items() if content}
    ids = {name: name.lower().replace(" ", "-") for name in shown}
    parts = {
        "title": escape(heading),
        "style": asset("style.css"),
        "style_hash": _hash(asset("style.css")),
        "script": _script(),
        "script_hash": _hash(_script()),
        "navigation": joined([element("a", name, href=f"#{ids[name]}") for name in shown]),
        "sections": joined(
            [element("section", element("h2", name), shown[name], id=ids[name]) for name in shown], "\n"
        ),
    }
    before, after = asset("page.html").split("$payload")
    yield Template(before).substitute(parts)
    yield from payload
    yield Template(after).substitute(parts)


@cache
def asset(name: str) -> str:
    """A file that lies beside this one: HTML, CSS or JavaScript."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def _script() -> str:
    return "\n".join(map(asset, _SCRIPTS))


def _hash(text: str) -> str:
    """What the page's policy knows its own style and script by: nothing else of either kind is run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
