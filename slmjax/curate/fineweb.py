"""The rules that FineWeb added to those of Gopher and C4: Penedo et al. 2024."""

from slmjax.curate.english import TERMINAL
from slmjax.curate.gopher import repetitions
from slmjax.curate.words import split_words


def fineweb(
    text: str,
    *,
    min_punctuated_lines: float = 0.12,
    max_short_lines: float = 0.67,
    short_line: int = 30,
    max_line_characters: float = 0.01,
    max_line_breaks: float = 0.3,
) -> tuple[str, str | None]:
    """Drop lists, menus and tables.

    They have few lines that end a sentence, many short lines, repeated lines, or many line breaks
    for their words. Blank lines are not counted as lines.

    Args:
      min_punctuated_lines: share of the lines that end in a mark that ends a sentence.
      max_short_lines: share of the lines with at most `short_line` characters.
      max_line_characters: characters in lines that occurred before, as a share of all characters
        but line breaks.
      max_line_breaks: line breaks per word.
    Returns: the text as it is, and the reason to drop it or None, see quality.py.
    Source: the defaults are those of datatrove 0.10, the library of FineWeb's authors.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return text, "fineweb: empty"
    punctuated = sum(line[-1] in TERMINAL for line in lines)
    if punctuated / len(lines) < min_punctuated_lines:
        return text, "fineweb: too few lines end in punctuation"
    short = sum(len(line) <= short_line for line in lines)
    if short / len(lines) > max_short_lines:
        return text, "fineweb: too many short lines"
    breaks = text.count("\n")
    _, repeated_characters = repetitions(lines)
    if repeated_characters / (len(text) - breaks) > max_line_characters:
        return text, "fineweb: repeated lines by characters"
    if breaks / len(split_words(text)) > max_line_breaks:
        return text, "fineweb: too many line breaks"
    return text, None
