"""Measure the shape of a Python package: what its rooms import, and how dense its lines are.

    python .ci/house.py [folder of the package] [--by-room] [--config] [--check]

A room is a subpackage, or a module directly in the package. An arrow is an import of another room;
it runs up where that room stands later in ORDER. A circle is a group of files, or of rooms, that
import each other.

Prints one figure a line. `--by-room` adds a table with one row for each room, `--config` the
functions that take the whole config. `--check` lists circles, arrows that run up, names that two
rooms have and lines that are too long, and ends with status 1 where there are any.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

# Room by room, each of which imports only earlier ones.
ORDER = """
errors readable config text textbook data parallel ops models checkpoint exported infer record
curate synthesize evals tasks reasoning train studies cli mixture compare generate chat export
probe_training testing launch bench
""".split()  # noqa: SIM905
WIDTH = 100  # most characters of a line
# Tokens that are not counted as code.
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
CONDITIONAL = (ast.IfExp,)
COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class File:
    """One source file of a package, with what can be measured in it.

    Args:
      root: folder of the package.
    """

    def __init__(self, root: Path, path: Path):
        self.path = path
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        self.module = ".".join((root.name, *parts))
        # The package's own __init__.py counts as part of the first room.
        self.room = parts[0] if parts else "errors"
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    def imports(self, modules: set[str]) -> set[str]:
        """Return which of the package's `modules` this file imports, inside functions too."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            # The package has no relative imports (level 0).
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    # "from a import b" imports the module a.b, or a name that a defines.
                    inner = f"{node.module}.{alias.name}"
                    found.add(inner if inner in modules else node.module)
        return {name for name in found if name in modules and name != self.module}

    def docstring_lines(self) -> set[int]:
        """Return the numbers of the lines that docstrings take, from 1."""
        lines = set()
        for node in ast.walk(self.tree):
            owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if not isinstance(node, owners) or not node.body:
                continue
            first = node.body[0]
            value = getattr(first, "value", None)
            is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
            if isinstance(first, ast.Expr) and is_text:
                lines.update(range(first.lineno, first.end_lineno + 1))
        return lines

    def counts(self) -> Counter:
        """Return what `figures` needs of this file, as sums that add up over files."""
        docstrings = self.docstring_lines()
        code = set()  # numbers of the lines that hold code
        counts = Counter()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                counts["comments"] += 1
            if token.type in SILENT or token.start[0] in docstrings:
                continue
            counts["tokens"] += 1
            code.update(range(token.start[0], token.end[0] + 1))
        lines = self.text.splitlines()
        counts["files"] = 1
        counts["lines"] = len(lines)
        counts["code"] = len(code)
        counts["long"] = sum(len(line) > WIDTH for line in lines)
        for node in ast.walk(self.tree):
            counts["conditionals"] += isinstance(node, CONDITIONAL)
            counts["comprehensions"] += isinstance(node, COMPREHENSION)
        counts["whole config"] = len(self.takes_whole_config())
        return counts

    def public_names(self) -> set[str]:
        """Return the names of the file's classes and functions that other rooms may import."""
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        names = {node.name for node in self.tree.body if isinstance(node, kinds)}
        return {name for name in names if not name.startswith("_")} - {"main"}

    def stem(self) -> set[str]:
        """Return the file's name, as a set for `House.in_several_rooms`."""
        return {self.path.stem} - {"__init__", "__main__"}

    def takes_whole_config(self) -> list[str]:
        """Return a line for each argument of a function that holds the whole config.

        By its type, Config or ConfigDict (also with "| None"), or by the name "config" without one.
        """
        found = []
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for argument in arguments:
                annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                type_name = annotation.split(" | ")[0].rpartition(".")[2]
                whole = type_name in ("Config", "ConfigDict")
                if whole or (argument.arg == "config" and not annotation):
                    found.append(f"{self.path}:{node.lineno} {node.name}({argument.arg})")
        return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan 1972).

    Args:
      graph: {node: nodes to which it has an edge}.
    """
    index = {}  # order in which nodes were visited
    low = {}  # smallest index on the stack that was reached from a node
    stack, result = [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        # Nothing earlier was reached: the nodes on the stack from here on are one component.
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                result.append(sorted(group))

    for node in list(graph):
        if node not in index:
            visit(node)
    return result


def per_thousand(part: int, whole: int) -> float:
    return round(1000 * part / max(1, whole), 1)


def figures(counts: Counter) -> dict[str, float]:
    """Return {name of a figure: its value} from the sum of `File.counts` over some files."""
    return {
        "files": counts["files"],
        "lines": counts["lines"],
        "tokens": counts["tokens"],
        "tokens a code line": round(counts["tokens"] / max(1, counts["code"]), 2),
        "conditional expressions per 1,000 code lines": per_thousand(
            counts["conditionals"], counts["code"]
        ),
        "comprehensions per 1,000 code lines": per_thousand(
            counts["comprehensions"], counts["code"]
        ),
        "lines over 100 columns": counts["long"],
        "comment lines, % of lines": round(100 * counts["comments"] / max(1, counts["lines"]), 1),
        "functions that take the whole config": counts["whole config"],
    }


class House:
    """A package.

    Attributes:
      files: its files.
      imports: {module: modules of the package that it imports}.
      rooms: {room: other rooms that it imports}.
      upward: imports of a later room, as "module -> module".
    """

    def __init__(self, root: Path):
        self.files = [File(root, path) for path in sorted(root.rglob("*.py"))]
        modules = {file.module for file in self.files}
        room_of = {file.module: file.room for file in self.files}
        self.imports = {file.module: file.imports(modules) for file in self.files}
        self.rooms: dict[str, set[str]] = defaultdict(set)
        self.upward = []
        for module, others in self.imports.items():
            for other in others:
                here, there = room_of[module], room_of[other]
                if here == there:
                    continue
                self.rooms[here].add(there)
                # An import of a room that ORDER does not have counts as upward, too.
                known = here in ORDER and there in ORDER
                if not known or ORDER.index(there) > ORDER.index(here):
                    self.upward.append(f"{module} -> {other}")

    def in_several_rooms(self, names_of: Callable[[File], set[str]]) -> dict[str, set[str]]:
        """Return {name: its rooms} of the names that more than one room has.

        Args:
          names_of: returns the names of a file.
        """
        homes = defaultdict(set)
        for file in self.files:
            for name in names_of(file):
                homes[name].add(file.room)
        return {name: rooms for name, rooms in homes.items() if len(rooms) > 1}

    def faults(self) -> list[str]:
        """Return a line of text for everything that --check lists."""
        lines = [f"circle: {' <-> '.join(group)}" for group in circles(self.imports)]
        lines += [f"circle: {' <-> '.join(group)}" for group in circles(self.rooms)]
        lines += [f"arrow up: {arrow}" for arrow in self.upward]
        for kind, names_of in (("name", File.public_names), ("file", File.stem)):
            for name, rooms in sorted(self.in_several_rooms(names_of).items()):
                lines.append(f"{kind} in rooms {', '.join(sorted(rooms))}: {name}")
        for file in self.files:
            for number, line in enumerate(file.text.splitlines(), 1):
                if len(line) > WIDTH:
                    lines.append(f"{file.path}:{number}: {len(line)} columns")
        return lines

    def print_figures(self, by_room: bool) -> None:
        """Print the figures of the package, and a table of each room's with `by_room`."""
        per_room: dict[str, Counter] = defaultdict(Counter)
        for file in self.files:
            per_room[file.room].update(file.counts())
        values = {
            "circles between files": len(circles(self.imports)),
            "circles between rooms": len(circles(self.rooms)),
            "arrows that run up": len(self.upward),
            **figures(sum(per_room.values(), Counter())),
            "public names in two rooms": len(self.in_several_rooms(File.public_names)),
            "file names in two rooms": len(self.in_several_rooms(File.stem)),
        }
        for name, value in values.items():
            print(f"{name:48}{value}")
        if not by_room:
            return
        # The figures in their order, but for the number of tokens.
        heads = ("files", "lines", "tok/line", "cond", "compr", "long", "comm %", "config")
        print(f"\n{'room':14}" + "".join(f"{head:>9}" for head in heads))
        for room in sorted(per_room, key=lambda name: ORDER.index(name) if name in ORDER else 99):
            row = figures(per_room[room])
            del row["tokens"]
            print(f"{room:14}" + "".join(f"{value:9}" for value in row.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", nargs="?", type=Path, default=Path("slmjax"))
    parser.add_argument("--by-room", action="store_true")
    parser.add_argument("--config", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    house = House(options.package.resolve())
    house.print_figures(options.by_room)
    if options.config:
        print(*(place for file in house.files for place in file.takes_whole_config()), sep="\n")
    faults = house.faults() if options.check else []
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
