"""Dependencies between the packages point one way."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import cpsl

FOLDER = Path(cpsl.__file__).parent

METHOD = {"_internal", "method"}
ALLOWED = {
    "_internal": set(),
    "method": {"_internal"},
    "visualize": METHOD,
    "models": METHOD,
    "data": METHOD,
    "testing": METHOD | {"data"},
    "training": {"_internal"},
    "methods": METHOD | {"models", "data"},
    "authors": METHOD | {"models", "data", "methods"},
    "inference": METHOD | {"models", "data", "authors"},
    "cpsl": METHOD | {"visualize", "models", "data", "testing", "methods", "authors", "inference"},
}
ALLOWED["app"] = {*ALLOWED, "app"}
ALLOWED["__main__"] = {"_internal", "cpsl", "app"}
"""What each part of the package may import; "method" are the modules directly in `cpsl`."""

EXCEPTIONS = {("cpsl.models", "cpsl.authors.checkpoints")}
"""Users expect `load_release_checkpoint` among the models: that name is imported at its first use."""

FILES = {
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FOLDER.rglob("*.py")
}


def imports(name: str) -> Iterator[str]:
    """Yields the modules of the package that a module imports, wherever the statement is."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "cpsl")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            if node.module is not None and node.module.split(".")[0] == "cpsl":
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    yield submodule if submodule in FILES else node.module


EDGES = {
    (importer, imported)
    for importer in FILES
    for imported in imports(importer)
    if (importer, imported) not in EXCEPTIONS
}


def part(name: str) -> str:
    """Returns the part of the package to which a module belongs, a key of `ALLOWED`."""
    _, *inner = name.split(".")
    if not inner:
        return "cpsl"
    return inner[0] if inner[0] in ALLOWED else "method"


def test_every_import_points_to_a_lower_layer() -> None:
    wrong = {
        f"{importer} imports {imported}"
        for importer, imported in EDGES
        if part(importer) != part(imported) and part(imported) not in ALLOWED[part(importer)]
    }
    assert not wrong


def test_the_table_names_every_package() -> None:
    packages = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert packages <= ALLOWED.keys()
    assert {part(name) for name in FILES} == ALLOWED.keys()


def test_every_exception_is_needed() -> None:
    assert all(imported in imports(importer) for importer, imported in EXCEPTIONS)


def test_imports_are_acyclic() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for importer, imported in EDGES:
        graph[importer].add(imported)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_the_report_is_written_by_two_modules_and_used_by_no_other() -> None:
    reporting = "cpsl.app.reporting"
    users = {importer for importer, imported in EDGES if imported.startswith(reporting)}
    assert {name for name in users if not name.startswith(reporting)} == {"cpsl.app.adapt", "cpsl.app.report"}
