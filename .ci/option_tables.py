"""Write the option tables of docs/*.md from the library: python .ci/option_tables.py [--check].

A table follows a line `<!-- options: GROUP ... -->` ("." holds the fields of no group),
`<!-- generate options -->` or `<!-- chat options -->`. With --check nothing is written, and a stale
page is status 1.
"""

import argparse
import re
import sys
from pathlib import Path

from slmjax import chat, config, generate

PARSERS = {"generate": generate.make_parser, "chat": chat.chat_parser}
DOCS = Path(__file__).parent.parent / "docs"
TABLE = re.compile(
    r"(<!-- (options: [^>]*|(?:generate|chat) options) -->\n)(?:\n\|[^\n]*(?:\n\|[^\n]*)*\n)?"
)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def field_rows(group: str) -> list[tuple[str, ...]]:
    rows = []
    for name, field in config.FIELDS.items():
        if name.rpartition(".")[0] == group.strip("."):
            choices = f" ({', '.join(field.choices)})" if field.choices else ""
            meaning = f"{field.meaning}{choices}".replace("|", "\\|")
            rows.append((f"`{name}`", f"`{field.default!r}`", meaning))
    return rows


def option_rows(parser: argparse.ArgumentParser) -> list[tuple[str, ...]]:
    rows = []
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        silent = action.required or action.nargs == 0 or action.default in (None, [], "")
        default = "" if silent else f"`{action.default!r}`"
        meaning = (action.help or "").replace(" (default: %(default)s)", "").replace("|", "\\|")
        rows.append((f"`{action.option_strings[0]}`", default, meaning))
    return rows


def written(page: str) -> str:
    """Return a page with its tables as they are today."""

    def insert(match: re.Match) -> str:
        words = match[2].split()
        if words[0] in PARSERS:
            rows = option_rows(PARSERS[words[0]]())
            body = table(("option", "default", "meaning"), rows)
        else:
            rows = [row for group in words[1:] for row in field_rows(group)]
            body = table(("field", "default", "meaning"), rows)
        return f"{match[1]}\n{body}"

    return TABLE.sub(insert, page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        if (new := written(text)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    if check and stale:
        print(f"stale tables in {', '.join(stale)}; run python .ci/option_tables.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
