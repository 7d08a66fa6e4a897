"""The house stands: rooms import downward, keep their private names, and only the upper ones know Lightning."""

import ast
from pathlib import Path

import pytest

from tests.rooms import (
    FLOORS,
    LIGHTNING_FILES,
    LIGHTNING_FROM,
    PACKAGE,
    circle,
    files,
    imports,
    inside,
    room_of,
    table,
    upward,
)

LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
COMPAT = "lightning_evo.strategies._compat"  # every private Lightning API: for all rooms that know Lightning
KNOW_LIGHTNING = FLOORS[FLOORS.index(LIGHTNING_FROM) :]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_imports(package=PACKAGE):
    """Imports of private names, or from private files, of other rooms and of Lightning."""
    found = []
    for one in imports(package):
        ours = inside(one.module, package)
        if not ours and one.module.split(".")[0] not in LIGHTNING:
            continue
        if ours and room_of(one.module) == room_of(one.file):
            continue
        if any(map(is_private, [*one.module.split("."), one.name])):
            found.append(one)
    return [
        one for one in found if one.file != COMPAT and (one.module != COMPAT or room_of(one.file) not in KNOW_LIGHTNING)
    ]


def lightning_imports(package=PACKAGE):
    """Imports of Lightning in rooms that know nothing of it, those by name included."""
    below = FLOORS[: FLOORS.index(LIGHTNING_FROM)]
    found = [(one.file, one.line) for one in imports(package) if one.module.split(".")[0] in LIGHTNING]
    for module, path in files(package).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
                named = node.args[0]
                if isinstance(named, ast.Constant) and str(named.value).split(".")[0] in LIGHTNING:
                    found.append((module, node.lineno))
    return [(module, line) for module, line in found if room_of(module) in below and module not in LIGHTNING_FILES]


def strings_for_lightning(package=PACKAGE):
    """Messages that name the Trainer, in rooms that know nothing of it."""
    found = []
    for module, path in files(package).items():
        if room_of(module) not in FLOORS[: FLOORS.index(LIGHTNING_FROM)] or module in LIGHTNING_FILES:
            continue
        tree = ast.parse(path.read_text())
        documentation = {
            ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documentation:
                found += [(module, node.lineno)] if "Trainer(" in node.value else []
    return found


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def private_accesses(package=PACKAGE):
    """Private attributes that are not ours, in rooms that know Lightning; read or written, by ``getattr``, too.

    Those of ``self`` must be defined somewhere in the package, those of other objects in the same file.
    """
    found = []
    ours = set().union(*(defined_in(path) for module, path in files(package).items() if module != COMPAT))
    for module, path in files(package).items():
        if module == COMPAT or room_of(module) not in KNOW_LIGHTNING:
            continue
        own = defined_in(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name, receiver = node.attr, node.value
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr")
                and isinstance(node.args[1], ast.Constant)
            ):
                name, receiver = str(node.args[1].value), node.args[0]
            else:
                continue
            if not is_private(name) or ast.unparse(receiver).startswith("torch."):
                continue
            if name not in (ours if of_self(receiver) else own):
                found.append((module, name, node.lineno))
    return found


def of_self(receiver):
    return ast.unparse(receiver) in ("self", "cls", "super()")


def defined_in(path):
    """Functions, classes and attributes of ``self`` that a file defines."""
    defined = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node.value):
            defined.add(node.attr)
    return defined


def test_every_file_lies_in_a_room():
    assert {room_of(module) for module in files()} - {""} == set(FLOORS)


def test_no_import_runs_upward():
    assert not upward()


def test_no_files_import_each_other_in_a_circle():
    assert not circle()


def test_rooms_keep_their_private_names():
    assert not private_imports()


def test_lower_rooms_know_nothing_of_lightning():
    assert not lightning_imports()
    assert not strings_for_lightning()


def test_private_parts_of_lightning_are_touched_in_one_file():
    assert not private_accesses()


@pytest.fixture
def house(tmp_path) -> Path:
    """A small package that breaks every rule once."""
    for name, code in {
        "utils/__init__.py": '"""Words: Trainer(strategy=…) may be named here."""\n',
        "utils/words.py": "import lightning.pytorch\nfrom lightning_evo.noise.draw import draw\n",
        "utils/_hidden.py": 'HELP = "Use Trainer(devices=1)."\n',
        "noise/draw.py": (
            "from lightning_evo.utils import _hidden, words\n"
            "def draw(values):\n"
            "    importlib.import_module('lightning.pytorch')\n"
            "    return values\n"
        ),
        "strategies/evo.py": (
            "from lightning.fabric.utilities.seed import _rank\n"
            "def run(trainer):\n"
            "    trainer._loop.go()\n"
            "    trainer._fresh = 1\n"
            "    trainer._journal.close()\n"
            "    getattr(trainer, '_data_connector')\n"
        ),
        "callbacks/journal.py": "class Recorder:\n    def __init__(self):\n        self._journal = 1\n",
        "strategies/_compat.py": "def go(trainer):\n    trainer._loop.go()\n",
    }.items():
        path = tmp_path / "lightning_evo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return tmp_path / "lightning_evo"


def test_what_breaks_a_rule_is_found(house):
    assert [(one.file, one.module) for one in upward(house)] == [
        ("lightning_evo.utils.words", "lightning_evo.noise.draw")
    ]
    assert circle(house) == ["lightning_evo.noise.draw", "lightning_evo.utils.words", "lightning_evo.noise.draw"]
    found = [(one.module, one.name) for one in private_imports(house)]
    assert found == [("lightning_evo.utils._hidden", ""), ("lightning.fabric.utilities.seed", "_rank")]
    assert lightning_imports(house) == [("lightning_evo.utils.words", 1), ("lightning_evo.noise.draw", 3)]
    assert strings_for_lightning(house) == [("lightning_evo.utils._hidden", 1)]
    accesses = sorted((line, name) for _, name, line in private_accesses(house))
    assert accesses == [(3, "_loop"), (4, "_fresh"), (5, "_journal"), (6, "_data_connector")]
    assert "imports that run upward: 1" in table(house)
