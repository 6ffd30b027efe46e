"""docs/extending.md, followed word by word in a copy of the project: a file, an entry in a registry, and what is then there."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import PACKAGES, circles, import_graph, upward

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = {section.split("\n", 1)[0]: section for section in TEXT.split("\n## ")[1:]}

pytestmark = pytest.mark.slow


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def enter(file: Path, registry: str, code: str) -> None:
    """Adds an entry to the dict or tuple that a registry is made from, and the import that it needs."""
    *imports, entry = code.strip().splitlines()
    source = file.read_text()
    (found,) = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and registry in ast.unparse(node).split("=")[0].split(":")[0]
    ]
    assert found is not None
    container = next(node for node in ast.walk(found) if isinstance(node, (ast.Dict, ast.Tuple)))
    last = container.values[-1] if isinstance(container, ast.Dict) else container.elts[-1]
    assert last.end_lineno is not None
    lines = source.splitlines()
    line = lines[last.end_lineno - 1]
    lines[last.end_lineno - 1] = f"{line[: last.end_col_offset]}, {entry}{line[last.end_col_offset :]}"
    first_import = next(i for i, line in enumerate(lines) if line.startswith("from latent_tts"))
    file.write_text("\n".join([*lines[:first_import], *imports, *lines[first_import:]]) + "\n")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with everything added that the page adds."""
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("configs", "checkpoints"):
        (folder / name).symlink_to(ROOT / name)
    for section in SECTIONS.values():
        code, registry, _ = blocks(section, "python")
        new = re.match(r"# (latent_tts/\S+\.py)\n", code)
        named = re.match(r"# registry: (\w+) in (latent_tts/\S+\.py)\n", registry)
        assert new and named and not (folder / new[1]).exists()
        (folder / new[1]).write_text(code.split("\n", 1)[1])
        enter(folder / named[2], named[1], registry.split("\n", 1)[1])
    return folder


RUN = """
import json, runpy, sys, traceback
told = {}
for name, code in json.loads(sys.argv[1]).items():
    try:
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
        told[name] = None
    except BaseException as error:
        told[name] = None if isinstance(error, SystemExit) and not error.code else traceback.format_exc()
print(json.dumps(told))
"""


def examples() -> dict[str, str]:
    """What the page runs, each as code: the lines of Python, and the command lines."""
    found = {}
    for name, section in SECTIONS.items():
        found[name] = blocks(section, "python")[-1]
        for line in "".join(blocks(section, "bash")).splitlines():
            python, *words = shlex.split(line)
            assert python == "python"
            found[line] = f"import runpy, sys; sys.argv = {words!r}; runpy.run_path({words[0]!r}, run_name='__main__')"
    return found


EXAMPLES = examples()


@pytest.fixture(scope="module")
def told(copy: Path) -> dict[str, str | None]:
    """How each example has ended, all of them in one process: a traceback, or None."""
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, json.dumps(EXAMPLES)]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_part_has_an_example() -> None:
    assert list(SECTIONS) == ["A sampler", "An aggregation", "A search", "A head", "A kind of backbone"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_one_file_and_one_entry_and_code_and_command_line_know_it(example: str, told: dict[str, str | None]) -> None:
    assert told[example] is None, told[example]


def test_what_is_added_points_down_only(copy: Path) -> None:
    graph = import_graph(copy)
    assert not upward(graph)
    added = {re.sub(r"\.py$", "", new).replace("/", ".") for new in re.findall(r"\n# (latent_tts/\S+\.py)\n", TEXT)}
    assert len(added) == len(SECTIONS)
    assert not {module for circle in circles(graph) for module in circle} & added
