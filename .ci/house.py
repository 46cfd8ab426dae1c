"""Measure the shape of a Python package: its rooms, its arrows and how dense its lines are.

    python .ci/house.py [folder of the package] [--by-room] [--check]

Prints one figure a line. `--by-room` adds a table with one row for each room. `--check` ends with
status 1 where a figure is past its limit, and names the places.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

# A room imports only rooms that stand before it.
ORDER = """
errors readable config text textbook data parallel ops models checkpoint infer record curate
synthesize evals tasks train studies cli mixture compare generate testing launch bench
""".split()  # noqa: SIM905
WIDTH = 100
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
    """One source file, read once."""

    def __init__(self, root: Path, path: Path):
        self.path = path
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        self.module = ".".join((root.name, *parts))
        self.room = parts[0] if parts else "errors"
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    def imports(self, modules: set[str]) -> set[str]:
        """Modules of the package that this file imports anywhere, late imports included."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found.update(name.name for name in node.names)
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for name in node.names:
                    inner = f"{node.module}.{name.name}"
                    found.add(inner if inner in modules else node.module)
        return {name for name in found if name in modules and name != self.module}

    def docstring_lines(self) -> set[int]:
        lines = set()
        for node in ast.walk(self.tree):
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if not isinstance(node, kinds) or not node.body:
                continue
            first = node.body[0]
            value = getattr(first, "value", None)
            text = isinstance(value, ast.Constant) and isinstance(value.value, str)
            if isinstance(first, ast.Expr) and text:
                lines.update(range(first.lineno, first.end_lineno + 1))
        return lines

    def counts(self) -> Counter:
        """Lines, code lines, tokens, comment lines, long lines and expressions of this file."""
        docstrings = self.docstring_lines()
        code = set()
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
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        names = {node.name for node in self.tree.body if isinstance(node, kinds)}
        return {name for name in names if not name.startswith("_")}

    def takes_whole_config(self) -> list[str]:
        """Functions with an argument that holds the settings of more than one room."""
        found = []
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for argument in arguments:
                annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                whole = annotation.split(" | ")[0] in ("Config", "ConfigDict")
                if whole or (argument.arg == "config" and not annotation):
                    found.append(f"{self.path}:{node.lineno} {node.name}({argument.arg})")
        return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index, low, stack, result = {}, {}, [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
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


def rate(part: int, whole: int) -> float:
    return round(1000 * part / max(1, whole), 1)


def figures(counts: Counter) -> dict[str, float]:
    return {
        "files": counts["files"],
        "lines": counts["lines"],
        "tokens": counts["tokens"],
        "tokens a code line": round(counts["tokens"] / max(1, counts["code"]), 2),
        "conditional expressions per 1,000 code lines": rate(
            counts["conditionals"], counts["code"]
        ),
        "comprehensions per 1,000 code lines": rate(counts["comprehensions"], counts["code"]),
        "lines over 100 columns": counts["long"],
        "comment lines, % of lines": round(100 * counts["comments"] / max(1, counts["lines"]), 1),
        "functions that take the whole config": counts["whole config"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", nargs="?", type=Path, default=Path("slmjax"))
    parser.add_argument("--by-room", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    root = options.package.resolve()
    files = [File(root, path) for path in sorted(root.rglob("*.py"))]
    modules = {file.module for file in files}
    room_of = {file.module: file.room for file in files}

    graph = {file.module: file.imports(modules) for file in files}
    rooms = defaultdict(set)
    upward = []
    for module, others in graph.items():
        for other in others:
            a, b = room_of[module], room_of[other]
            if a == b:
                continue
            rooms[a].add(b)
            known = a in ORDER and b in ORDER
            if not known or ORDER.index(b) > ORDER.index(a):
                upward.append(f"{module} -> {other}")
    file_circles, room_circles = circles(graph), circles(rooms)

    homes = defaultdict(set)
    for file in files:
        for name in file.public_names() - {"main"}:
            homes[name].add(file.room)
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    stems = defaultdict(set)
    for file in files:
        if file.path.stem not in ("__init__", "__main__"):
            stems[file.path.stem].add(file.room)
    files_twice = {stem: where for stem, where in stems.items() if len(where) > 1}

    per_room = defaultdict(Counter)
    for file in files:
        per_room[file.room].update(file.counts())
    total = sum(per_room.values(), Counter())

    print(f"{'circles between files':48}{len(file_circles)}")
    print(f"{'circles between rooms':48}{len(room_circles)}")
    print(f"{'arrows that run up':48}{len(upward)}")
    for name, value in figures(total).items():
        print(f"{name:48}{value}")
    print(f"{'public names in two rooms':48}{len(twice)} of {len(homes)}")
    print(f"{'file names in two rooms':48}{len(files_twice)} of {len(stems)}")
    if options.by_room:
        heads = ("files", "lines", "tok/line", "cond", "compr", "long", "comm %", "config")
        print(f"\n{'room':14}" + "".join(f"{head:>9}" for head in heads))
        for room in sorted(per_room, key=lambda name: ORDER.index(name) if name in ORDER else 99):
            values = list(figures(per_room[room]).values())
            del values[2]  # tokens
            print(f"{room:14}" + "".join(f"{value:9}" for value in values))
    if not options.check:
        return 0
    places = [
        *(f"circle: {' <-> '.join(group)}" for group in file_circles + room_circles),
        *(f"arrow up: {arrow}" for arrow in upward),
        *(
            f"name in rooms {', '.join(sorted(where))}: {name}"
            for name, where in sorted(twice.items())
        ),
        *(
            f"file in rooms {', '.join(sorted(where))}: {stem}.py"
            for stem, where in sorted(files_twice.items())
        ),
    ]
    for file in files:
        places += [f"whole config: {place}" for place in file.takes_whole_config()]
        for number, line in enumerate(file.text.splitlines(), 1):
            if len(line) > WIDTH:
                places.append(f"{file.path}:{number}: {len(line)} columns")
    print("\n".join(places))
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main())
