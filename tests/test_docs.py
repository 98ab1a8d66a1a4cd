"""The documentation is true: code runs, commands exist, links lead somewhere, no public name is missing."""

import ast
import doctest
import importlib
import inspect
import itertools
import pkgutil
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from PIL import Image

import cpsl
import cpsl.data
import cpsl.engine
from config import Config, parse
from cpsl import Segmenter
from cpsl.data import CITYSCAPES_19
from cpsl.models import DeepLabV2
from export import export

ROOT = Path(__file__).parents[1]
TEXTS = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
MODULES = [
    importlib.import_module(module.name) for module in pkgutil.iter_modules(cpsl.__path__, "cpsl.")
]
PACKAGES = [cpsl, *(module for module in MODULES if hasattr(module, "__path__"))]


class Block(NamedTuple):
    """A fenced block of a page, without the indentation that a list gives it, and what it prints."""

    language: str
    text: str
    output: str = ""


def blocks(*languages: str) -> list[Any]:
    """Returns the blocks of some languages as parameters of a test."""
    parameters = []
    for page in TEXTS:
        found = [
            Block(language, re.sub(f"^{indent}", "", text, flags=re.M))
            for indent, language, text in re.findall(
                r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", page.read_text(), re.M | re.S
            )
        ]
        for number, (block, after) in enumerate(itertools.zip_longest(found, found[1:])):
            if block.language in languages:
                # What follows code as text is what the code prints.
                output = after.text if after and after.language == "text" else ""
                name = f"{page.stem}-{number}"
                parameters.append(pytest.param(block._replace(output=output), id=name))
    return parameters


def test_every_block_has_a_language_that_is_checked() -> None:
    # The one that shows a difference is compared with the files in test_integrations.py.
    checked = {"", "sh", "bash", "python", "pycon", "toml", "text", "diff"}
    used = {block.values[0].language for block in blocks(*checked)}
    fences = {
        language
        for page in TEXTS
        for language in re.findall(r"^ *```(\w+)", page.read_text(), re.M)
    }
    assert fences <= checked
    assert {"", "python", "pycon"} <= used


@pytest.fixture(scope="session")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the files that the pages take for granted."""
    folder = tmp_path_factory.mktemp("docs")
    model = DeepLabV2(19, "resnet_tiny", 8).eval()
    Segmenter(model, CITYSCAPES_19, (32, 64)).save(folder / "model.pt")
    Image.new("RGB", (80, 48)).save(folder / "street.jpg")
    return folder


@pytest.mark.parametrize("block", blocks("python"))
def test_code_in_the_documentation_runs(block: Block, around: Path, monkeypatch, capsys) -> None:
    if ".pkl" in block.text:
        pytest.skip("the authors' checkpoints are not here")
    monkeypatch.chdir(around)
    if "model.onnx" in block.text:
        pytest.importorskip("onnxruntime", reason="ONNX needs cpsl[export]")
        export(Segmenter.load("model.pt"), Path("model.onnx"))
    exec(compile(block.text, "docs", "exec"), {})
    if block.output:
        assert capsys.readouterr().out == block.output


@pytest.mark.parametrize("block", blocks("pycon"))
def test_dialogues_in_the_documentation_are_as_they_are_written(block: Block) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, {}, "docs", None, 0)
    assert test.examples
    told: list[str] = []
    result = doctest.DocTestRunner().run(test, out=told.append)
    assert result.failed == 0, "".join(told)


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_in_the_documentation_are_read(block: Block, tmp_path: Path) -> None:
    assert tomllib.loads(block.text)
    file = tmp_path / "docs.toml"
    file.write_text(block.text)
    rest = ["--output", "r", "--source.images", "a", "--target.images", "b"]
    parse(Config, ["--config", str(file), *rest])


# What a command line may begin with besides this project's own programs.
OTHERS = {"git", "cd", "export", "tensorboard", "ruff", "rm", "mkdir", "ls", "cp"}


def commands(text: str) -> Iterator[list[str]]:
    """Yields the simple commands of a shell script, as words."""
    text = text.replace("\\\n", " ").replace("$seed", "0")
    for line in text.splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words[:1] == ["for"] or words in ([], ["done"]):
            continue
        part: list[str] = []
        for word in [*words, "&&"]:
            if word in ("&&", ";", "|"):
                yield part
                part = []
            else:
                part.append(word)


def is_script(block: Block) -> bool:
    """Whether a block without a language holds commands; others hold equations, output or trees of files."""
    known = r"^(\$ )?(for .* in|make|pip|git|torchrun|python3?|\.venv/bin/\w+|\.ci/\w+) "
    return block.language != "" or re.search(known, block.text, re.M) is not None


SCRIPTS = [block for block in blocks("", "sh", "bash") if is_script(block.values[0])]


@pytest.mark.parametrize("block", SCRIPTS)
def test_commands_in_the_documentation_exist(block: Block, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(block.text):
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables before a command
            words = words[1:]
        program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
        if program in ("python", "python3", "torchrun"):
            if arguments[0] == "-m":
                files = [word for word in arguments[2:] if word.endswith(".py")]
                assert all((ROOT / file).is_file() for file in files), files
                continue
            place = next(i for i, word in enumerate(arguments) if word.endswith(".py"))
            check_program(arguments[place], arguments[place + 1 :])
        elif program == "make":
            for target in (word for word in arguments if "=" not in word):
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
        elif program == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
                assert set(extra.split(",")) <= set(extras["optional-dependencies"])
        elif "/" in program:
            assert (ROOT / program).is_file(), program
        else:
            assert program in OTHERS, f"this test does not know the command {program}"


def check_program(path: str, arguments: list[str]) -> None:
    """Reads arguments as a program would: unknown options, wrong values and missing files are errors."""
    assert (ROOT / path).is_file(), path
    if path.startswith("examples/"):
        module = importlib.import_module(Path(path).stem)
        if arguments and "--help" not in arguments:
            parse(getattr(module, "Arguments", Config), arguments)
    else:
        source = (ROOT / path).read_text()
        for option in (word for word in arguments if word.startswith("--")):
            field = option.removeprefix("--").replace("-", "_")  # of the arguments' dataclass
            known = f'"{option}"' in source or re.search(rf"^    {field}: ", source, re.M)
            assert known, f"{path} has no option {option}"


@pytest.mark.parametrize(
    "command",
    [
        "python examples/adapt.py --config examples/configs/nowhere.toml",
        "python examples/nowhere.py",
        "python examples/evaluate.py --config examples/configs/demo.toml --weigths a.pt",
        "python examples/adapt.py --config examples/configs/demo.toml --warmup.iterations many",
        "python benchmarks/step.py --frobnicate 3",
        "make nothing",
        "pip install '.[nothing]'",
        "frobnicate",
    ],
)
def test_wrong_commands_are_noticed(command: str, monkeypatch) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        test_commands_in_the_documentation_exist(Block("", command), monkeypatch)


@pytest.mark.parametrize("page", [page for page in TEXTS if page.parent == ROOT], ids=str)
def test_links_of_the_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    # Those between the pages of the site are checked where it is built: mkdocs build --strict.
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("https://", "http://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            if anchor:
                titles = re.findall(r"^#+ (.*)", target.read_text(), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
                assert anchor in slugs, link


def public_names() -> list[Any]:
    """Returns package, name and value of each public name that is no module."""
    parameters = []
    for package in PACKAGES:
        for name in package.__all__:
            value = getattr(package, name)
            if not isinstance(value, ModuleType) and name != "__version__":
                parameters.append(
                    pytest.param(package, name, value, id=f"{package.__name__}.{name}")
                )
    return parameters


def defining_module(package: ModuleType, name: str, value: object) -> ModuleType:
    """Returns the module that defines a public name; constants do not know theirs."""
    if inspect.isclass(value) or inspect.isfunction(value):
        return sys.modules[value.__module__]
    inside = (m for n, m in sys.modules.items() if n.startswith(f"{package.__name__}."))
    return next(m for m in inside if name in constants(m))


def constants(module: ModuleType) -> dict[str, str]:
    """Returns the constants of a module and what stands below each of them."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            text = getattr(getattr(after, "value", None), "value", "")
            for target in ast.walk(targets[0]):
                if isinstance(target, ast.Name):
                    found[target.id] = text if isinstance(text, str) else ""
    return found


def in_the_reference(module: ModuleType) -> bool:
    """Whether a page of the reference is made from a module; what has no docstring is left out there."""
    directives = {
        directive
        for page in (ROOT / "docs" / "api").glob("*.md")
        for directive in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    }
    return any(f"{module.__name__}.".startswith(f"{directive}.") for directive in directives)


@pytest.mark.parametrize(("package", "name", "value"), public_names())
def test_every_public_name_is_described(package: ModuleType, name: str, value: object) -> None:
    module = defining_module(package, name, value)
    assert in_the_reference(module)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        assert constants(module)[name], f"{name} has no docstring"
        return
    description = inspect.getdoc(value)
    assert description
    # Results, enumerations and protocols are seen at work where they are made. The engine is seen at work in
    # the trainers: most of it needs a run.
    shown_elsewhere = inspect.isclass(value) and (
        issubclass(value, tuple | Enum) or getattr(value, "_is_protocol", False)
    )
    bare = {cpsl.data.Draw, cpsl.data.SourceBatch, cpsl.data.TargetBatch}
    if not shown_elsewhere and package is not cpsl.engine and value not in bare:
        assert ">>>" in description, f"{name} has no example"


# What the other modules share; nobody else needs to know it.
INNER = {"cpsl.distributed", "cpsl.files", "cpsl.checking", "cpsl.randomness"}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_module_is_in_the_reference(module: ModuleType) -> None:
    if module not in PACKAGES:
        assert in_the_reference(module) == (module.__name__ not in INNER)
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", "") == module.__name__ and callable(value)
            if ours and not name.startswith("_"):
                assert inspect.getdoc(value), f"{module.__name__}.{name} has no docstring"


PICTURES = [
    pytest.param(page, alt, target, id=target)
    for page in TEXTS
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text())
]


@pytest.mark.parametrize(("page", "alt", "target"), PICTURES)
def test_pictures_are_there_small_and_described(page: Path, alt: str, target: str) -> None:
    path = page.parent / target
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        picture.load()
    assert len(alt) > 20
