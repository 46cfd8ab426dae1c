"""One self-contained HTML page: the style sheet, and the tables and figures that reports use."""

import functools
import html as _html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slmjax.record.figures import COLORS, DARK, LIGHT


class Markup(str):
    """A string that is HTML already, so that a table does not escape it."""


def page(title: str, lead: str, body: str) -> str:
    """Return a whole page.

    Args:
      title: plain text.
      lead: HTML of the line below the heading.
      body: HTML.
    """
    heading = escape(title)
    # Nothing is loaded from elsewhere, so that the file can be mailed and kept.
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{heading}</title>\n<style>\n{_style()}</style>"
    )
    header = f'<header><h1>{heading}</h1>\n<p class="lead">{lead}</p></header>'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n<main>\n{header}\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a section with its heading; nothing where every part is empty."""
    inner = "\n".join(filter(None, parts))
    if not inner:
        return ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>\n"


def note(text: str) -> str:
    """Return a remark in small print below a table or figure; `text` is plain."""
    return f'<p class="note">{escape(text)}</p>'


def tiles(values: Mapping[str, str]) -> str:
    """Return headline numbers by their names; empty values are left out."""
    cells = []
    for name, value in values.items():
        if value:
            cells.append(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>")
    if not cells:
        return ""
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def figures(*svgs: str) -> str:
    """Return figures side by side where there is room, one below the other on a phone."""
    drawn = [f"<figure>{svg}</figure>" for svg in svgs if svg]
    if not drawn:
        return ""
    return f'<div class="figures">{"".join(drawn)}</div>'


def html_table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    text_columns: int = 1,
    strong: Iterable[int] = (),
) -> str:
    """Return a table, or "" without rows.

    Args:
      head: titles of the columns; without any the table has no head.
      rows: cells are plain text, or HTML where they are `Markup`; None is an empty cell.
      text_columns: number of first columns that hold text; the others hold numbers, which are set
        flush right.
      strong: indices of rows that stand out.
    """
    strong = set(strong)
    lines = []
    for index, row in enumerate(rows):
        opening = '<tr class="strong">' if index in strong else "<tr>"
        lines.append(f"{opening}{_cells('td', row, text_columns)}</tr>")
    if not lines:
        return ""
    titles = _cells("th", head, text_columns)
    if titles:
        titles = f"<thead><tr>{titles}</tr></thead>"
    # A table that is wider than a phone scrolls by itself, so that the page does not.
    return f'<div class="scroll"><table>{titles}<tbody>{"".join(lines)}</tbody></table></div>'


def without_empty_columns(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, always: int = 0
) -> tuple[list[str], list[list[Any]]]:
    """Return head and rows without the columns in which every cell is None.

    Args:
      always: number of first columns that stay in any case.
    """
    # Indices of the columns that stay.
    kept = []
    for column in range(len(head)):
        is_empty = all(row[column] is None for row in rows)
        if column < always or not is_empty:
            kept.append(column)
    kept_rows = [_at(row, kept) for row in rows]
    return _at(head, kept), kept_rows


def bar(share: float, color: int = 0) -> Markup:
    """Return a bar of `share` of the cell's width, in one of the colours of lines."""
    # Rounding may leave a share a little below 0 or above 1.
    width = 100 * min(1.0, max(0.0, share))
    style = f"width:{width:.2f}%;background:var(--c{color % COLORS})"
    return Markup(f'<span class="bar"><i style="{style}"></i></span>')


def escape(value: object) -> str:
    """Return a value's text with HTML's special characters escaped."""
    return _html.escape(str(value))


def _cells(tag: str, values: Sequence[object], text_columns: int) -> str:
    """Return the cells of one row; the first `text_columns` hold text."""
    cells = []
    for column, value in enumerate(values):
        opening = f'<{tag} class="text">' if column < text_columns else f"<{tag}>"
        cells.append(f"{opening}{_inner(value)}</{tag}>")
    return "".join(cells)


def _inner(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    return escape(value)


def _at(row: Sequence[Any], columns: Sequence[int]) -> list[Any]:
    return [row[column] for column in columns]


# Read once: a study writes many pages.
@functools.cache
def _style() -> str:
    """Return the colours of both schemes and the rules of slmjax/record/page.css."""
    # The rules name colours only as variables, so the same rules serve both schemes.
    rules = Path(__file__).with_name("page.css").read_text("utf-8")
    light, dark = _variables(LIGHT), _variables(DARK)
    scheme = f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return f":root {{ {light} }}\n{scheme}\n{rules}"


def _variables(colors: Mapping[str, str]) -> str:
    definitions = [f"--{name}: {value};" for name, value in colors.items()]
    return " ".join(definitions)
