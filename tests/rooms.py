"""The house: which room imports which. ``python -m tests.rooms [package]`` prints it as a table."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lightning_evo"

FLOORS = (  # from the ground up: a room imports only rooms before it
    "utils",
    "kernels",
    "noise",
    "spaces",
    "isolation",
    "perturbations",
    "algorithms",  # with algorithms/search
    "evaluation",  # with evaluation/places and evaluation/ways
    "processes",
    "generation",
    "journal",
    "rewards",
    "curves",
    "callbacks",
    "strategies",
    "module",
    "pytorch_lightning",
    "cli",
)
LIGHTNING_FROM = "callbacks"  # the first room that may import Lightning
LIGHTNING_FILES = ("lightning_evo.rewards.module", "lightning_evo.rewards.data")  # and these: a module is Lightning's


@dataclass(frozen=True)
class Import:
    """One name that a file imports.

    Attributes:
        file: The importing file's module, ``lightning_evo.noise.values``.
        module: What it imports from; a module of the package as a file is.
        name: The name in there; empty for ``import module``.
        line: Its line.
    """

    file: str
    module: str
    name: str
    line: int


def files(package: Path = PACKAGE) -> dict[str, Path]:
    """All files by their modules' names."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path = PACKAGE) -> Iterator[Import]:
    """All imports of a package's files, those for type checkers and within functions included."""
    known = files(package)
    for file, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(file, alias.name, "", node.lineno)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno}: a relative import"
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    is_module = module in known
                    yield Import(
                        file, module if is_module else str(node.module), "" if is_module else alias.name, node.lineno
                    )


def room_of(module: str) -> str:
    """The room that a module of the package lies in: the first part of its name."""
    return module.split(".")[1] if "." in module else ""


def inside(module: str, package: Path = PACKAGE) -> bool:
    """Whether a module is the package's."""
    return module.split(".")[0] == package.name


def upward(package: Path = PACKAGE) -> list[Import]:
    """Imports of rooms that stand further up."""
    height = {room: number for number, room in enumerate(FLOORS)}
    between = [one for one in imports(package) if inside(one.module, package)]
    root = height["cli"] - 0.5  # the package itself, which shows what the rooms have
    return [one for one in between if height.get(room_of(one.module), root) > height.get(room_of(one.file), root)]


def circle(package: Path = PACKAGE) -> list[str]:
    """Files that import each other in a circle; empty if none do."""
    needs: dict[str, set[str]] = {file: set() for file in files(package)}
    for found in imports(package):
        if inside(found.module, package) and found.module != found.file:
            needs[found.file].add(found.module)
    done: set[str] = set()

    def visit(file: str, path: list[str]) -> list[str]:
        if file in path:
            return [*path[path.index(file) :], file]
        if file not in done:
            for other in sorted(needs.get(file, ())):
                found = visit(other, [*path, file])
                if found:
                    return found
            done.add(file)
        return []

    for file in needs:
        found = visit(file, [])
        if found:
            return found
    return []


def table(package: Path = PACKAGE) -> str:
    """Each room with its files, lines and imports from other rooms."""
    lines: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for file, path in files(package).items():
        room = room_of(file)
        count[room] += 1
        lines[room] += len(path.read_text().splitlines())
    uses: dict[str, Counter[str]] = {room: Counter() for room in count}
    for found in imports(package):
        other = room_of(found.module)
        if inside(found.module, package) and other and other != room_of(found.file):
            uses[room_of(found.file)][other] += 1
    order = [*(room for room in FLOORS if room in count), *sorted(room for room in count if room not in FLOORS)]
    rows = [f"| {'room':17} | files | lines | names imported from other rooms |", "|---|---|---|---|"]
    for room in order:
        used = ", ".join(f"{other} {number}" for other, number in sorted(uses[room].items(), key=lambda pair: -pair[1]))
        rows.append(f"| {room or '(root)':17} | {count[room]:5} | {lines[room]:5} | {used} |")
    found = circle(package)
    rows += [
        "",
        f"imports that run upward: {len(upward(package))}",
        f"a circle of files: {' -> '.join(found) or 'none'}",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE))
