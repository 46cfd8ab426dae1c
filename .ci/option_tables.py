"""Write the option tables of docs/*.md from the library: python .ci/option_tables.py [--check].

A table follows a line `<!-- options: GROUP ... -->` (fields of the config's groups; "." for those
of no group), or `<!-- COMMAND options -->` (options of a command of PARSERS). With --check nothing
is written, and the status is 1 if a page is stale.
"""

import argparse
import re
import sys
from pathlib import Path

from slmjax import chat, config, export, generate, probe_training

PARSERS = {
    "generate": generate.make_parser,
    "chat": chat.chat_parser,
    "export": export.make_export_parser,
    "probe_training": probe_training.probe_training_parser,
}
DOCS = Path(__file__).parent.parent / "docs"
# The marking line (its words are group 2), and the table after it, if there is one.
TABLE = re.compile(r"(<!-- (options: [^>]*|[a-z_]+ options) -->\n)(?:\n\|[^\n]*(?:\n\|[^\n]*)*\n)?")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def field_rows(group: str) -> list[tuple[str, ...]]:
    """Return (field, default, meaning) of each field of a group of the config."""
    rows = []
    for name, field in config.FIELDS.items():
        if name.rpartition(".")[0] != group.strip("."):
            continue
        meaning = field.meaning
        if field.choices:
            meaning += f" ({', '.join(field.choices)})"
        # "|" would begin another cell.
        meaning = meaning.replace("|", "\\|")
        rows.append((f"`{name}`", f"`{field.default!r}`", meaning))
    return rows


def command_rows(command: str) -> list[tuple[str, ...]]:
    """Return (option, default, meaning) of each option of a command, one of PARSERS."""
    rows = []
    for action in PARSERS[command]()._actions:
        if "--help" in action.option_strings:
            continue
        has_no_default = action.required or action.nargs == 0
        default = ""
        if not has_no_default and action.default not in (None, [], ""):
            default = f"`{action.default!r}`"
        # The default has a column of its own.
        meaning = (action.help or "").replace(" (default: %(default)s)", "").replace("|", "\\|")
        rows.append((f"`{action.option_strings[0]}`", default, meaning))
    return rows


def with_new_tables(page: str) -> str:
    """Return a page's text with its tables written anew."""

    def new_table(match: re.Match) -> str:
        words = match[2].split()
        if words[0] in PARSERS:
            body = table(("option", "default", "meaning"), command_rows(words[0]))
        else:
            rows = [row for group in words[1:] for row in field_rows(group)]
            body = table(("field", "default", "meaning"), rows)
        return f"{match[1]}\n{body}"

    return TABLE.sub(new_table, page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        new = with_new_tables(text)
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    if check and stale:
        print(f"stale tables in {', '.join(stale)}; run python .ci/option_tables.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
