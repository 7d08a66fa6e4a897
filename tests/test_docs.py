"""The documentation is true: its code runs, its commands and configurations parse, its links and defaults are right.

A block opts out by an HTML comment on the line before it: ``<!-- not run: reason -->``.
"""

import ast
import importlib.util
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lightning_evo import algorithms
from lightning_evo.cli.command import EvoCLI
from lightning_evo.cli.main import main
from lightning_evo.cli.tools import TOOLS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
OPTIONAL = re.compile(r"^(?:from|import) (peft|transformers)\b", flags=re.MULTILINE)
OPT_OUT = re.compile(r"<!-- not run: \S[^>]* -->\n$")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning"),  # Lightning's, for any
    pytest.mark.filterwarnings("ignore:No seed found, seed set to"),  # LightningCLI says which one it took
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # as when resuming it is
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated"),  # of peft
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(fence[1], fence[2], text.count("\n", 0, fence.start()) + 2)
        for fence in FENCE.finditer(text)
        if fence[1] == language and not OPT_OUT.search(text[: fence.start()])
    ]


def pages_with(language: str) -> list:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, language)]


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where runs leave their logs and checkpoints
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["lightning-evo"])
    monkeypatch.setattr(algorithms, "_REGISTRY", dict(algorithms._REGISTRY))


@pytest.mark.parametrize("page", pages_with("python"))
def test_python(page, monkeypatch):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    missing = set()
    for block in blocks(page, "python"):
        lacking = [name for name in OPTIONAL.findall(block.code) if importlib.util.find_spec(name) is None]
        missing.update(lacking)
        if lacking:
            continue
        code = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
        exec(compile(code, str(page), "exec"), vars(module))
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}; blocks that need it were left out, all others run")


def configuration(arguments: list[str]) -> None:
    """Has LightningCLI read the arguments and make what they describe, without running it."""
    sys.argv[:] = ["lightning-evo"]  # LightningCLI warns of arguments in two places
    quiet = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false"]
    EvoCLI(args=[*arguments, *quiet], run=False, save_config_callback=None)


def needs_installed(text: str) -> None:
    if "examples.digits" in text or "examples/digits" in text:
        pytest.importorskip("sklearn")


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml(page, tmp_path):
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block.code)
        if "trainer" in content:
            needs_installed(block.code)
            file = tmp_path / f"line_{block.line}.yaml"
            file.write_text(block.code)
            model = [] if "model" in content else ["--model=lightning.pytorch.demos.boring_classes.BoringModel"]
            configuration(["--config", str(file), *model])


def commands(script: str) -> list[list[str]]:
    """The words of each command, environment variables in front of it left out."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def find_config(words: list[str], page: Path, folder: Path) -> list[str]:
    """Paths of configurations made absolute: files of the repository, or YAML blocks headed ``# name.yaml``."""
    for block in blocks(page, "yaml"):
        if name := re.match(r"# (\S+\.yaml)\n", block.code):
            (folder / name[1]).write_text(block.code)
    found = list(words)
    for i, word in enumerate(words[:-1]):
        if word in ("--config", "-c"):
            places = [folder / words[i + 1], ROOT / words[i + 1]]
            found[i + 1] = str(next(place for place in places if place.is_file()))
    return found


def check(words: list[str], page: Path, folder: Path) -> None:
    """That a command would start: LightningCLI accepts its options, or what it names exists."""
    program, *arguments = words
    if program == "lightning-evo":
        subcommand, *options = arguments
        if subcommand in TOOLS:
            TOOLS[subcommand].parser().parse_args(options)
            return
        if subcommand == "--version":
            main(arguments)
            return
        assert subcommand in EvoCLI.subcommands()
        needs_installed(" ".join(options))
        if any(".help" in option for option in options):
            with pytest.raises(SystemExit, match="0"):
                main(arguments)
        else:
            configuration(find_config(options, page, folder))
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None, f"no module {arguments[1]}"
        if arguments[1] == "pytest":
            assert all((ROOT / path).exists() for path in arguments[2:])
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), f"no file {arguments[0]}"
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(arguments) <= set(targets)
    else:
        assert program == "pip", f"don't know how to check {program!r}"


@pytest.mark.parametrize("page", pages_with("bash"))
def test_bash(page, tmp_path):
    for block in blocks(page, "bash"):
        for words in commands(block.code):
            check(words, page, tmp_path)


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text(encoding="utf-8")), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{link}: no such heading"


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_every_fence_is_closed_and_of_a_known_language(page):
    text = page.read_text(encoding="utf-8")
    assert "```" not in FENCE.sub("", text)
    assert {fence[1] for fence in FENCE.finditer(text)} <= {"python", "bash", "yaml"}


@pytest.mark.parametrize("name", algorithms.available())
def test_every_algorithm_has_its_page(name):
    factory = algorithms.get(name)
    page = (DOCS / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
    defaults = page.partition("**Defaults:**")[2].partition("\n\n")[0]
    stated = {option: ast.literal_eval(value) for option, value in re.findall(r"`(\w+)=([^`]+)`", defaults)}
    assert stated == dict(factory.defaults)
    ((kind, number),) = re.findall(r"(arXiv|doi):(\S+)", factory.paper)
    place = {"arXiv": "arxiv.org/abs", "doi": "doi.org"}[kind]
    assert f"[{kind}:{number}](https://{place}/{number})" in page
    assert f"[`{name}`]({name}.md)" in (DOCS / "algorithms" / "index.md").read_text(encoding="utf-8")


def test_options_of_the_family_are_documented_and_their_defaults_right():
    page = (DOCS / "algorithms" / "index.md").read_text(encoding="utf-8")
    recipe = algorithms.get("openai_es")
    assert isinstance(recipe, algorithms.Recipe)
    for option in recipe.options:
        assert f"`{option}`" in page
    stated = dict(re.findall(r"`(\w+)=([^`]+)`", page.partition("has these defaults:")[2].partition("\n\n")[0]))
    plain = algorithms.EvolutionStrategy(population=2, sigma=1.0, learning_rate=1.0)
    assert stated
    assert {option: ast.literal_eval(value) for option, value in stated.items()} == {
        option: getattr(plain, option) for option in stated
    }
