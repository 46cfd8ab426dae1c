"""Print the files that a Python file can reach, and their hash: python .ci/closure.py FILE.

A file reaches what it imports (anywhere in it), and what one of its string constants names as
`module`, `module:attribute` or a path. These are at least the files that it uses, as long as no
name is put together at run time.
"""

import ast
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = re.compile(r"((?:slmjax|tests)(?:\.\w+)*)(?::\w+)?")  # group 1: without the attribute


def closure(start: Path) -> list[Path]:
    """Return every file that `start` can reach, itself included, sorted."""
    reached: set[Path] = set()
    waiting = [start.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            if file.suffix == ".py":
                waiting.extend(_named_by(file))
    return sorted(reached)


def digest(files: list[Path]) -> str:
    """Return a hash of the files' names and contents; of Python files without comments."""
    lines = []
    for file in files:
        content = _code(file) if file.suffix == ".py" else file.read_bytes()
        lines.append(f"{file.relative_to(ROOT)} {hashlib.sha256(content).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _code(file: Path) -> bytes:
    """Return a Python file without comments, docstrings and layout."""
    tree = ast.parse(file.read_text())
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.unparse(tree).encode()


def _named_by(file: Path) -> set[Path]:
    """Return the files that a Python file itself imports or names."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _of_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found |= _of_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := MODULE.fullmatch(node.value):
                found |= _of_module(match[1])
            for path in re.findall(r"[\w./-]+", node.value):
                if "/" in path and not path.startswith("/") and (ROOT / path).is_file():
                    found.add(ROOT / path)
    return found


def _of_module(name: str) -> set[Path]:
    """Return the files of a module and of the packages around it; none for a library's module.

    Args:
      name: dotted; its last part may also be an attribute of the module.
    """
    found = set()
    parts = name.split(".")
    # Importing a.b.c also runs a and a.b.
    for count in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:count])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                found.add(file)
    return found


if __name__ == "__main__":
    reached = closure(Path(sys.argv[1]))
    print(digest(reached), *(file.relative_to(ROOT) for file in reached), sep="\n")
