"""Imports every module of an installed cpsl that needs no extra, and runs the examples in docstrings."""

import doctest
import importlib
import importlib.metadata
import pkgutil
from importlib.resources import files

import cpsl

assert cpsl.__version__ == importlib.metadata.version("cpsl")
assert files("cpsl").joinpath("py.typed").is_file(), "type checkers do not see the types"

failed = tried = modules = 0
for module in pkgutil.walk_packages(cpsl.__path__, "cpsl.", onerror=lambda name: None):
    if module.name.startswith("cpsl.engine"):
        continue
    result = doctest.testmod(importlib.import_module(module.name))
    failed, tried, modules = failed + result.failed, tried + result.attempted, modules + 1

try:
    importlib.import_module("cpsl.engine")
except ImportError as error:
    if "cpsl[examples]" not in str(error):
        raise
else:
    raise SystemExit("cpsl.engine should need an extra: is the environment empty?")

print(f"cpsl {cpsl.__version__}: {modules} modules, {tried} examples, {failed} failed")
raise SystemExit(failed > 0)
