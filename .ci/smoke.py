"""Imports every module of an installed cpsl that needs no extra, and runs its doctests."""

import doctest
import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from importlib.resources import files

import cpsl
from cpsl.models import build_network

NEED_TRAIN = ("cpsl.training", "cpsl.app")
LIBRARIES = {
    "timm": "timm:resnet18",
    "lite0": "lite0",
    "smp": "smp:Unet/resnet18",
    "transformers": "transformers:segformer",
}
"""Adapters that need another library, each with one of its networks."""

assert cpsl.__version__ == importlib.metadata.version("cpsl")
assert files("cpsl").joinpath("py.typed").is_file()

modules = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(cpsl.__path__, "cpsl.", onerror=lambda name: None)
    if not module.name.startswith(NEED_TRAIN)
]
adapters = {f"cpsl.models.adapters.{name}" for name in LIBRARIES}
results = [doctest.testmod(module) for module in modules if module.__name__ not in adapters]
failed, attempted = (sum(numbers) for numbers in zip(*results, strict=True))
print(f"cpsl {cpsl.__version__}: {len(modules)} modules, {attempted} doctests, {failed} failed")
assert not failed

# A network of a library that is not installed says which.
for network in LIBRARIES.values():
    message = ""
    try:
        build_network(network, 3, weights="random")
    except ModuleNotFoundError as error:
        message = str(error)
    assert "pip install" in message, f"{network}: {message}"

# What needs the extra names it.
for command in ("import cpsl.training", "import cpsl.__main__ as m; m.main(['demo'])"):
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert run.returncode, f"{command} works without the extra: is this environment empty?"
    assert "cpsl[train]" in run.stderr, run.stderr
