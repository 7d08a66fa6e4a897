"""The house stands: rooms import downward, keep their private names, and only the upper ones know Lightning."""

import ast
from pathlib import Path

import pytest

from tests.rooms import FLOORS, LIGHTNING_FROM, PACKAGE, circle, files, imports, inside, room_of, table, upward

LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
COMPAT = "lightning_evo.strategies._compat"  # every private Lightning API: for all rooms that know Lightning
KNOW_LIGHTNING = FLOORS[FLOORS.index(LIGHTNING_FROM) :]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_imports(package=PACKAGE):
    """Imports of private names, or from private files, of other rooms."""
    found = []
    for one in imports(package):
        if not inside(one.module, package) or room_of(one.module) == room_of(one.file):
            continue
        if any(map(is_private, [*one.module.split("."), one.name])):
            found.append(one)
    return [one for one in found if one.module != COMPAT or room_of(one.file) not in KNOW_LIGHTNING]


def lightning_imports(package=PACKAGE):
    """Imports of Lightning in rooms that know nothing of it."""
    below = FLOORS[: FLOORS.index(LIGHTNING_FROM)]
    return [one for one in imports(package) if one.module.split(".")[0] in LIGHTNING and room_of(one.file) in below]


def strings_for_lightning(package=PACKAGE):
    """Messages that name the Trainer, in rooms that know nothing of it."""
    found = []
    for module, path in files(package).items():
        if room_of(module) not in FLOORS[: FLOORS.index(LIGHTNING_FROM)]:
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
    """Private attributes, in rooms that know Lightning, that nothing of ours defines: Lightning's."""
    defined, used = set(), []
    for module, path in files(package).items():
        compat = module == f"{package.name}.strategies._compat"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute) and is_private(node.attr):
                if isinstance(node.ctx, ast.Store) and not compat:
                    defined.add(node.attr)
                elif not compat and room_of(module) in KNOW_LIGHTNING:
                    used.append((module, node.attr, node.lineno))
    return [(module, name, line) for module, name, line in used if name not in defined]


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
        "noise/draw.py": "from lightning_evo.utils import _hidden, words\ndef draw():\n    pass\n",
        "strategies/evo.py": "from lightning_evo.noise import draw\ndef run(trainer):\n    trainer._loop.go()\n",
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
    assert [one.module for one in private_imports(house)] == ["lightning_evo.utils._hidden"]
    assert [one.file for one in lightning_imports(house)] == ["lightning_evo.utils.words"]
    assert strings_for_lightning(house) == [("lightning_evo.utils._hidden", 1)]
    assert private_accesses(house) == [("lightning_evo.strategies.evo", "_loop", 3)]
    assert "imports that run upward: 1" in table(house)
