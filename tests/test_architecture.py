"""The house: imports point down one list, nothing goes in a circle, and the core knows nothing of Lightning.

The graph is read from the source by ``ast``, never by importing, so that an import inside a function or under
``TYPE_CHECKING`` counts like any other: a part that needs another only sometimes still depends on it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the top to the bottom; an import may only point to a room further down.
ROOMS = [
    "train",
    "evaluate",
    "commands",
    "callbacks",
    "lightning_modules",
    "datamodules",
    "latent_tts",
    "latent_tts.evaluation",
    "latent_tts.training",
    "latent_tts.annotation",
    "latent_tts.search",
    "latent_tts.reward",
    "latent_tts.engine",
    "latent_tts.sampling",
    "latent_tts.metrics",
    "latent_tts.aggregation",
    "latent_tts.backbones",
    "latent_tts.attention",
    "latent_tts.acceleration",
    "latent_tts.problems",
    "latent_tts.answers",
    "latent_tts.seeding",
    "latent_tts.errors",
    "latent_tts.files",
]
WORDS = {"problems", "answers", "seeding", "errors"}  # the only loose modules of the core
PACKAGES = ("commands", "callbacks", "lightning_modules", "datamodules", "latent_tts")
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_utilities", "lightning_fabric"}

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the packages and the two entry points, by its dotted name; a package is its ``__init__``."""
    files = [root / "train.py", root / "evaluate.py"]
    files += [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return {dotted(file.relative_to(root)): file for file in files if file.exists()}


def dotted(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every name a file imports, absolute: ``from a import b`` gives ``a.b``, ``import a.b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join(here[: len(here) - node.level + 1] + ([base] if base else []))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(root: Path) -> Graph:
    """Module -> the project's modules it imports; a name that is no module stands for the module that has it."""
    known = modules(root)
    graph: Graph = {}
    for module, file in known.items():
        names = imported(ast.parse(file.read_text("utf-8")), module, file.name == "__init__.py")
        targets = {name if name in known else name.rpartition(".")[0] for name in names}
        graph[module] = {target for target in targets if target in known and target != module}
    return graph


def room(module: str) -> str:
    """The longest entry of the list that the module lies in."""
    homes = [name for name in ROOMS if module == name or module.startswith(name + ".")]
    # the core's own __init__ is the only module that lies in "latent_tts" itself
    return max(homes, key=len)


def upward(graph: Graph) -> set[tuple[str, str]]:
    """The imports that point up the list."""
    pairs = ((module, target) for module, targets in graph.items() for target in targets)
    return {(module, target) for module, target in pairs if ROOMS.index(room(module)) > ROOMS.index(room(target))}


def folders(graph: Graph) -> Graph:
    """The graph between folders; a package's ``__init__`` lies in the package, a room of one file is a folder too."""
    packages = {module.rpartition(".")[0] for module in graph} | set(ROOMS)
    home = {module: module if module in packages else module.rpartition(".")[0] for module in graph}
    between: Graph = {folder: set() for folder in home.values()}
    for module, targets in graph.items():
        between[home[module]] |= {home[target] for target in targets} - {home[module]}
    return between


def reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def circles(graph: Graph) -> set[frozenset[str]]:
    """Groups of nodes that reach each other; a node alone is none."""
    reach = {node: reachable(graph, node) for node in graph}
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}
    return {group for group in groups if len(group) > 1}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_graph(ROOT)


def test_every_module_lies_in_a_room(graph: Graph) -> None:
    nowhere = {m for m in graph if not any(m == name or m.startswith(name + ".") for name in ROOMS)}
    assert not nowhere


def test_imports_point_down_only(graph: Graph) -> None:
    assert not upward(graph)


def test_no_circle_between_files_or_folders(graph: Graph) -> None:
    assert not circles(graph)
    assert not circles(folders(graph))


def test_the_core_has_no_loose_modules_but_the_words_everything_speaks() -> None:
    assert {file.stem for file in (ROOT / "latent_tts").glob("*.py")} <= WORDS | {"__init__"}


def test_the_core_imports_nothing_of_lightning() -> None:
    found = set()
    for module, file in modules(ROOT).items():
        if room(module).startswith("latent_tts"):
            names = imported(ast.parse(file.read_text("utf-8")), module, file.name == "__init__.py")
            found |= {(module, name) for name in names if name.split(".")[0] in LIGHTNING}
    assert not found


def test_nothing_that_is_shipped_imports_tests_or_benchmarks() -> None:
    for module, file in modules(ROOT).items():
        names = imported(ast.parse(file.read_text("utf-8")), module, file.name == "__init__.py")
        assert not {name for name in names if name.split(".")[0] in ("tests", "benchmarks")}, module


@pytest.fixture
def crooked(tmp_path: Path) -> Path:
    """A small house in which each rule is broken once, each time by an import that is easy to overlook."""
    files = {
        "latent_tts/__init__.py": "",
        "latent_tts/errors.py": "",
        "latent_tts/engine/__init__.py": "",
        "latent_tts/engine/engine.py": "def run():\n    from latent_tts import reward\n",
        "latent_tts/reward/__init__.py": "from latent_tts.reward.model import Model\n",
        "latent_tts/reward/model.py": "from latent_tts.engine.engine import run\nfrom .steps import step\n",
        "latent_tts/reward/steps.py": "if TYPE_CHECKING:\n    from .model import Model\n",
        "datamodules/__init__.py": "import latent_tts.errors\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_reading_finds_what_is_easy_to_overlook(crooked: Path) -> None:
    graph = import_graph(crooked)
    assert upward(graph) == {("latent_tts.engine.engine", "latent_tts.reward")}
    assert graph["datamodules"] == {"latent_tts.errors"}
    model, steps, engine, reward = (
        f"latent_tts.{name}" for name in ("reward.model", "reward.steps", "engine.engine", "reward")
    )
    assert circles(graph) == {frozenset({model, steps, engine, reward})}
    assert circles(folders(graph)) == {frozenset({"latent_tts.engine", "latent_tts.reward"})}
