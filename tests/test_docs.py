"""The documentation is true: code runs, commands parse, settings and files exist, names are described."""

import ast
import doctest
import inspect
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from markdown.extensions.toc import slugify
from PIL import Image

import cpsl
from cpsl import Segmenter
from cpsl.app.command_line import parse, parse_arguments, read_layers
from cpsl.app.config import Config
from cpsl.app.export import export
from cpsl.app.settings import UsageError, schema
from cpsl.data import CITYSCAPES_19
from cpsl.models import DeepLabV2, load_backbone_weights

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which also names what is gone
WIDTH = 88
"""Characters of a code block that fit beside the menus of the site, in a window of 1280 pixels."""


class Block(NamedTuple):
    """A fenced block, without the indentation of a list around it."""

    page: Path
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """Returns the blocks of a language, "" for commands and output."""
    return [
        Block(page, found, re.sub(f"^{indent}", "", text, flags=re.M))
        for page in PAGES
        for indent, found, text in re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(), re.M | re.S)
        if found == language
    ]


def by_path(page: Path) -> str:
    return str(page.relative_to(ROOT))


def by_name(block: Block) -> str:
    return f"{by_path(block.page)}: {block.text.splitlines()[0]}"


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_code_blocks_fit_the_page_and_have_a_known_language(page: Path) -> None:
    text = page.read_text()
    known = {"python", "pycon", "toml", "text", "output", "bibtex"}
    assert set(re.findall(r"^ *```(.+)$", text, re.M)) <= known
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S):
        wide = [line for line in block.splitlines() if len(line) > WIDTH]
        assert not wide, wide


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the files that the pages assume."""
    folder = tmp_path_factory.mktemp("docs")
    run = folder / "runs" / "my_folders"
    run.mkdir(parents=True)
    segmenter = Segmenter(DeepLabV2(19, "resnet_tiny", 8).eval(), CITYSCAPES_19, (32, 64))
    segmenter.save(folder / "model.pt")
    segmenter.save(run / "model.pt")
    network = DeepLabV2(19, "resnet101")
    cpsl.authors.save_release_checkpoint(folder / "gta2citylabv2_stage1.pkl", network)
    converted = {simclr_name(name): value for name, value in network.backbone.state_dict().items()}
    torch.save({"resnet": converted, "head": {}}, folder / "r101_1x_sk0.pth")
    export(segmenter, folder / "model.onnx")
    Image.new("RGB", (80, 48)).save(folder / "street.jpg")
    return folder


def simclr_name(name: str) -> str:
    """Returns the name that SimCLRv2-Pytorch gives to an entry of torchvision's ResNet."""
    stem, _, rest = name.partition(".")
    if stem in ("conv1", "bn1"):
        return f"net.0.{'0' if stem == 'conv1' else '1.0'}.{rest}"
    block, layer, rest = rest.split(".", 2)
    if layer == "downsample":
        part, _, rest = rest.partition(".")
        place = "projection.shortcut" if part == "0" else "projection.bn.0"
    else:
        index = 2 * int(layer[-1]) - 2
        place = f"net.{index}" if layer.startswith("conv") else f"net.{index + 1}.0"
    return f"net.{stem.removeprefix('layer')}.blocks.{block}.{place}.{rest}"


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}), ids=by_path)
@pytest.mark.filterwarnings("ignore")  # of Lightning, about this machine
def test_code_runs(page: Path, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}  # the blocks of a page build on each other
    for block in blocks("python"):
        if block.page == page:
            exec(compile(block.text, page.name, "exec"), names)
    printed = capsys.readouterr().out
    assert all(block.text in printed for block in blocks("text") if block.page == page)


def test_renamed_weights_of_simclr_are_those_of_the_student(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    code = next(b.text for b in blocks("python") if b.page.name == "reproduce.md" and "RENAME" in b.text)
    exec(compile(code, "reproduce.md", "exec"), {})
    before = torch.load("r101_1x_sk0.pth", weights_only=True)["resnet"]
    backbone = DeepLabV2(19, "resnet101").backbone
    load_backbone_weights(backbone, "weights/r101_1x_sk0.pth")
    assert len(before) == len(backbone.state_dict()) > 600
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[simclr_name(name)]), name


@pytest.mark.parametrize("block", blocks("pycon"), ids=by_name)
def test_sessions_give_what_is_printed(block: Block) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, {}, block.page.name, None, 0)
    assert test.examples
    output: list[str] = []
    assert doctest.DocTestRunner().run(test, out=output.append).failed == 0, "".join(output)


@pytest.mark.parametrize("block", blocks("toml"), ids=by_name)
def test_settings_files_are_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "docs.toml"
    file.write_text(block.text)
    assert read_layers([str(file)])


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of each command of a block."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line):
            if words := shlex.split(command, comments=True):
                yield words


def is_script(block: Block) -> bool:
    """Returns whether a block holds commands, and no output."""
    return (
        re.match(r"(cpsl|git clone \S+/cpsl|make|pip|python|torchrun|sbatch|\.venv/bin/\w+)\s", block.text)
        is not None
    )


def check_command(words: list[str]) -> None:
    """Checks that a command exists and takes its options."""
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "torchrun" or arguments[:1] == ["-m"]:
        module, *arguments = arguments[arguments.index("-m") + 1 :]
        if module == "cpsl":
            check_cpsl(*arguments)
        else:
            assert all((ROOT / word).exists() for word in arguments if "/" in word)
    elif program == "cpsl":
        check_cpsl(*arguments)
    elif program == "sbatch":
        assert (ROOT / arguments[0]).is_file()
        check_cpsl("adapt", *arguments[1:])
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in arguments)
    elif program == "git":
        urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
        assert arguments == ["clone", urls["Source"]]
    elif program == "cd":
        assert arguments == ["cpsl"]  # the clone
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert set(extra.split(",")) <= set(extras["optional-dependencies"])
    elif program == "python":
        path = ROOT / arguments[0]
        source = (path / "__main__.py" if path.is_dir() else path).read_text()
        for option in (word for word in arguments if word.startswith("--")):
            name = option.removeprefix("--").replace("-", "_")
            assert f'"{option}"' in source or re.search(rf"^    {name}: ", source, re.M), option
    else:
        assert program in ("ruff", "tensorboard"), program


def check_cpsl(command: str, *options: str) -> None:
    """Parses the options of a command of `cpsl`, in a folder where each file of settings is a template."""
    for file in (word for word in options if word.endswith(".toml")):
        shutil.copy(ROOT / "examples" / "my_folders.toml", file)
    module = import_module(f"cpsl.app.{command}")
    if command in ("adapt", "check", "demo"):
        parse(options, command, ("demo",) if command == "demo" else ())
    elif command == "recipes":
        module.main(list(options))
    elif command == "report":
        assert len(options) == 1
    else:
        parse_arguments(module.Arguments, options, command)


@pytest.mark.parametrize("block", [*filter(is_script, blocks(""))], ids=by_name)
def test_commands_parse(block: Block, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(block.text):
        check_command(words)


@pytest.mark.parametrize(
    "command",
    [
        "cpsl adapt --config nowhere",
        "cpsl adapt --config demo --warmup.iterations many",
        "cpsl evaluate --config demo --weigths a.pt",
        "cpsl nothing",
        "python benchmarks/step.py --nothing 3",
        "make nothing",
        "pip install '.[nothing]'",
        "nothing",
    ],
)
def test_wrong_commands_are_detected(command: str) -> None:
    with pytest.raises((AssertionError, ImportError, SystemExit, UsageError)):
        check_command(shlex.split(command))


@pytest.mark.parametrize("page", CURRENT, ids=by_path)
def test_files_and_settings_named_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"https?://[^\s)]+", "", page.read_text())
    files = re.findall(r"\b(?:benchmarks|cpsl|docs|examples|tests)/[\w/]+\.\w+\b", text)
    assert not [file for file in files if not (ROOT / file).exists()]
    settings = schema(Config)
    tables = {name.partition(".")[0] for name in settings if "." in name}
    named = [n.replace("-", "_") for n in re.findall(r"`(?:--)?([a-z_\-]+\.[a-z_.\-]+)\b", text)]
    named = [name for name in named if not name.endswith((".py", ".pt", ".toml"))]
    assert not [n for n in named if n.partition(".")[0] in tables and n not in settings]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page, and of the objects of the reference."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
    titles = [
        re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.M)
    ]
    return {slugify(title, "-") for title in titles} | {*re.findall(r"^::: (\S+)", text, re.M)}


def missing_links(page: Path) -> list[str]:
    """Returns the links of a page to files or headings that do not exist."""
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        found = link.startswith("https://") or path.exists()
        if found and anchor and path.suffix == ".md":
            # The members of a module or class of the reference have anchors as well.
            found = any(anchor == a or ("." in a and anchor.startswith(f"{a}.")) for a in anchors(path))
        if not found:
            missing.append(link)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_links_resolve(page: Path) -> None:
    assert not missing_links(page)


@pytest.mark.parametrize("link", ["http://a.org", "nowhere.md", "a.md#two", "#two", "a.md#cpsl.models"])
def test_missing_links_are_detected(link: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One\n::: cpsl.data")
    page = tmp_path / "b.md"
    page.write_text(f"# Three, `four`\n[x]({link}) [y](#three-four) [z](a.md#one) [u](a.md#cpsl.data.GTA5)")
    assert missing_links(page) == [link]


@pytest.mark.parametrize(
    ("page", "alt", "target"),
    [
        (page, *found)
        for page in PAGES
        for found in re.findall(r"!\[([^\]]*)\]\((?!https:)([^)]+)\)", page.read_text())
    ],
)
def test_pictures_are_small_and_described(page: Path, alt: str, target: str) -> None:
    path = page.parent / target
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        picture.load()
    assert len(alt) > 20


PACKAGES = [
    import_module(name)
    for name in (
        *("cpsl", "cpsl.authors", "cpsl.data", "cpsl.methods"),
        *("cpsl.models", "cpsl.testing", "cpsl.training"),
    )
]
REFERENCE = {
    name
    for page in (ROOT / "docs" / "api").glob("*.md")
    for found in re.findall(r"^::: (\S+)|`(cpsl\.[\w.]+\.[A-Z_]+)`", page.read_text(), re.M)
    for name in found
}
"""Modules and objects that the reference describes, and constants that its text names."""


def public_names() -> Iterator[Any]:
    """Yields package, name and value of each public name that is no module."""
    for package in PACKAGES:
        for name in package.__all__:
            value = getattr(package, name)
            if not isinstance(value, ModuleType) and name != "__version__":
                yield pytest.param(package, name, value, id=f"{package.__name__}.{name}")


@pytest.mark.parametrize(("package", "name", "value"), [*public_names()])
def test_every_public_name_is_in_the_reference(package: ModuleType, name: str, value: object) -> None:
    if inspect.isclass(value) or inspect.isfunction(value):
        module, description = value.__module__, inspect.getdoc(value)
    else:  # a constant does not know its module
        found = next(m for m in modules_of(package) if name in described_constants(m))
        module, description = found.__name__, described_constants(found)[name]
    homes = (package.__name__, module)
    assert {*homes, *(f"{home}.{name}" for home in homes)} & REFERENCE
    assert description


def modules_of(package: ModuleType) -> list[ModuleType]:
    return [m for name, m in sys.modules.items() if name.startswith(f"{package.__name__}.")]


def described_constants(module: ModuleType) -> dict[str, str]:
    """Returns the constants of a module with the docstring below each."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            text = getattr(getattr(after, "value", None), "value", "")
            for target in ast.walk(statement):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    found[target.id] = text if isinstance(text, str) else ""
    return found
