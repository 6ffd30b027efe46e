"""What the package says of itself is true: its version, its Python, its bounds, its pins, its hooks.

Nothing here imports torch, so that another Python can be asked too.
"""

from __future__ import annotations

import ast
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import latent_tts

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("latent_tts", "lightning_modules", "datamodules", "callbacks", "commands")


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements(setup: ConfigParser) -> list[Requirement]:
    extras = [value for _, value in setup["options.extras_require"].items()]
    lines = "\n".join([setup["options"]["install_requires"], *extras]).splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_the_version_is_written_once_and_the_changelog_has_it(setup: ConfigParser) -> None:
    assert setup["metadata"]["version"] == "attr: latent_tts.__version__"
    assert f"## {latent_tts.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {latent_tts.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_setuptools_can_read_the_version_without_running_the_package() -> None:
    body = ast.parse((ROOT / "latent_tts" / "__init__.py").read_text()).body
    (found,) = [node.value for node in body if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"]  # type: ignore[attr-defined]
    assert ast.literal_eval(found) == latent_tts.__version__


def test_every_pin_lies_within_the_bounds_and_lower_bounds_are_what_is_tested(
    setup: ConfigParser, pins: dict[str, Version]
) -> None:
    for requirement in requirements(setup):
        pinned = pins[canonicalize_name(requirement.name)]
        assert pinned in requirement.specifier, f"{requirement} does not allow the pinned {pinned}"
        for bound in requirement.specifier:
            lowest = Version(bound.version).release[:2]
            assert bound.operator != ">=" or pinned.release[: len(lowest)] == lowest, requirement


def test_libraries_whose_private_interfaces_are_used_have_an_upper_bound(setup: ConfigParser) -> None:
    bounded = {r.name for r in requirements(setup) if any(bound.operator == "<" for bound in r.specifier)}
    assert {"lightning", "jsonargparse", "transformers"} <= bounded


def test_every_setting_names_the_same_lowest_python(setup: ConfigParser) -> None:
    lowest = setup["mypy"]["python_version"]
    assert SpecifierSet(setup["options"]["python_requires"]) == SpecifierSet(f">={lowest}")
    assert tomllib.loads((ROOT / "ruff.toml").read_text())["target-version"] == "py" + lowest.replace(".", "")
    assert f"Python {lowest} or newer" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_hooks_come_from_the_project_alone() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    entries = " ".join(re.findall(r"entry: (.+)", text))
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    for tool in re.findall(r"\$\(BIN\)/(.+)", lint):
        assert tool.replace(" .", "").strip() in entries.replace(" --force-exclude", ""), tool


def test_the_licence_that_is_named_is_the_one_that_lies_there(setup: ConfigParser) -> None:
    named = setup["metadata"]["license"]
    assert (ROOT / "LICENSE").read_text().startswith(f"{named} License")
    assert f"\nlicense: {named}\n" in (ROOT / "CITATION.cff").read_text()
