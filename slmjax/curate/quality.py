"""The quality rules by name.

A rule is a function of a text. It returns what it keeps of the text, and why the document is
dropped (None: it is not).
"""

from collections.abc import Callable, Sequence
from functools import partial

from slmjax.curate.c4 import c4
from slmjax.curate.fineweb import fineweb
from slmjax.curate.gopher import gopher_quality, gopher_repetition
from slmjax.errors import UserError, nearest

Rule = Callable[[str], tuple[str, str | None]]

# FineWeb applies gopher_repetition, gopher_quality, c4_any_line_end and fineweb, in this order
# (Penedo et al. 2024). They are rules for web pages: most mathematics, code, tables and lists fail
# them.
RULES: dict[str, Rule] = {
    "gopher_repetition": gopher_repetition,
    "gopher_quality": gopher_quality,
    "c4": c4,
    "c4_any_line_end": partial(c4, terminal_punctuation=False),
    "fineweb": fineweb,
}


def apply_rules(text: str, rules: Sequence[str | Rule]) -> tuple[str, str | None]:
    """Return what the rules keep of a text, and the first reason to drop it, or None.

    Args:
      rules: names in RULES, or rules themselves (as `language_rule` makes one); each gets what the
        one before has kept.
    Raises: UserError for an unknown name.
    """
    for rule in rules:
        apply = RULES[known(rule)] if isinstance(rule, str) else rule
        text, reason = apply(text)
        if reason:
            return text, reason
    return text, None


def known(name: str) -> str:
    """Return the name itself. Raises: UserError if there is no rule of that name."""
    if name not in RULES:
        raise UserError(
            f"there is no quality rule '{name}'; expected some of {', '.join(RULES)}."
            f"{nearest(name, RULES)}"
        )
    return name
