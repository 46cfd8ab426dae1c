"""One self-contained HTML page: the style sheet, tables, tiles and figures that the report and compare are made of."""

import html as _html
from collections.abc import Iterable, Mapping, Sequence

from slmjax.record.figures import DARK, LIGHT


def escape(value: object) -> str:
    """Text as HTML shows it."""
    return _html.escape(str(value))


def page(title: str, lead: str, body: str) -> str:
    """A whole page. `title` is text, `lead` (the line below it) and `body` are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="lead">{lead}</p></header>\n{body}\n</main>\n</body>\n</html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A section with its heading; nothing where every part is empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>\n" if inner else ""


def note(text: str) -> str:
    """A remark in small print below a table or figure; `text` is plain."""
    return f'<p class="note">{escape(text)}</p>'


def tiles(values: Mapping[str, str]) -> str:
    """Headline numbers; empty ones are left out."""
    cells = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in values.items()
        if value
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>' if cells else ""


def figures(*svgs: str) -> str:
    """Figures side by side where there is room, one below the other on a phone."""
    found = [f"<figure>{svg}</figure>" for svg in svgs if svg]
    return f'<div class="figures">{"".join(found)}</div>' if found else ""


def html_table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    left: int = 1,
    strong: Iterable[int] = (),
) -> str:
    """A table; the first `left` columns hold text, the others numbers, which are set flush right. Rows in `strong` stand out.

    A cell is plain text, or HTML where it is a `Markup`. None is an empty cell. A table without rows is nothing;
    without a head it has none.
    """
    strong, lines = set(strong), []
    for index, row in enumerate(rows):
        cells = "".join(_cell("td", value, column < left) for column, value in enumerate(row))
        lines.append(f'<tr class="strong">{cells}</tr>' if index in strong else f"<tr>{cells}</tr>")
    if not lines:
        return ""
    top = "".join(_cell("th", name, column < left) for column, name in enumerate(head))
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


class Markup(str):
    """A string that is HTML already."""


def bar(share: float, color: int = 0) -> Markup:
    """A bar of `share` of the cell's width."""
    width = 100 * min(1.0, max(0.0, share))
    return Markup(
        f'<span class="bar"><i style="width:{width:.2f}%;background:var(--c{color % 8})"></i></span>'
    )


def _cell(tag: str, value: object, left: bool) -> str:
    inner = "" if value is None else value if isinstance(value, Markup) else escape(value)
    return f'<{tag} class="text">{inner}</{tag}>' if left else f"<{tag}>{inner}</{tag}>"


def _style() -> str:
    def colors(theme: Mapping[str, str]) -> str:
        return " ".join(f"--{name}: {value};" for name, value in theme.items())

    return f":root {{ {colors(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {colors(DARK)} }} }}\n{_RULES}"


_RULES = """\
* { box-sizing: border-box; }
html { font-size: clamp(16px, 0.55vw + 11.5px, 22px); -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; font-weight: 650; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 0.8rem; font-weight: 650; }
h3 { font-size: 0.95rem; margin: 1.4rem 0 0.5rem; font-weight: 600; }
section { margin-top: 2.6rem; padding-top: 1.3rem; border-top: 1px solid var(--grid); }
p { margin: 0.4rem 0; max-width: 46rem; }
.lead { color: var(--muted); margin-top: 0.5rem; }
.note { color: var(--muted); font-size: 0.8rem; margin-top: 0.7rem; }
.warn { border-left: 3px solid var(--c1); padding-left: 0.8rem; margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1.1rem 1.4rem; margin: 1.8rem 0 0; }
.tiles dt { color: var(--muted); font-size: 0.8rem; }
.tiles dd { margin: 0; font-size: 1.45rem; font-weight: 600; line-height: 1.25; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem 2rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; overflow: visible; font-family: inherit; }
.scroll { overflow-x: auto; margin: 0 -0.2rem; } .scroll + .scroll, .scroll + .figures { margin-top: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--muted); font-size: 0.8rem; }
th, td { padding: 0.36rem 0.7rem 0.36rem 0.2rem; border-bottom: 1px solid var(--grid); text-align: right; vertical-align: baseline;
  white-space: nowrap; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 6rem; }
tr.strong td { font-weight: 650; }
.bar { display: inline-block; width: 9rem; height: 0.65rem; background: var(--grid); border-radius: 2px; vertical-align: middle; }
.bar i { display: block; height: 100%; border-radius: 2px; }
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.82rem; }
pre { margin: 0; padding: 0.8rem 1rem; border: 1px solid var(--grid); border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
.samples { display: grid; gap: 0.8rem; }
.samples b { font-weight: 650; } .samples span { color: var(--muted); }
details { margin-top: 0.6rem; } summary { cursor: pointer; color: var(--muted); font-size: 0.88rem; }
.chips { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 0.8rem 0 1.2rem; font-size: 0.88rem; }
.chips i { display: inline-block; width: 0.8rem; height: 0.8rem; border-radius: 2px; margin-right: 0.4rem; vertical-align: -0.08rem; }
@media (max-width: 40rem) { main { padding-top: 1.4rem; } h1 { font-size: 1.5rem; } .tiles dd { font-size: 1.2rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); } .bar { width: 4.5rem; } }
@media print { section { break-inside: avoid; } }
"""
