"""What the pages say of the tree is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOMS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FOLDERS = (
    "benchmarks|callbacks|checkpoints|commands|configs|datamodules|docs|latent_tts|lightning_modules|scripts|tests"
)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_folder_that_a_page_names_is_there(page: Path) -> None:
    text = prose(page)
    named = {
        name for quoted in re.findall(r"`([^`\n]+)`", text) for name in re.findall(rf"^(?:{FOLDERS})/[\w./-]*$", quoted)
    }
    missing = {name for name in named if not any(ROOT.glob(name.rstrip("/"))) and not any(ROOT.glob(name + ".py"))}
    assert not missing


def test_the_rooms_of_the_page_are_those_of_the_test_in_the_same_order() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Rooms")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    named = [
        name.removesuffix(".py").rstrip("/").replace("/", ".") for row in rows for name in re.findall(r"`([^`]+)`", row)
    ]
    named = [name if name in ROOMS else f"latent_tts.{name}" for name in named]
    assert named == [room for room in ROOMS if room != "latent_tts"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose(page))
    assert not [link for link in links if not (page.parent / link).exists()]
