"""The quality rules by name.

A rule is a function of a text. It returns the part of the text that it keeps, and the reason to
drop the whole document, or None.
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
        if isinstance(rule, str):
            rule = rule_named(rule)
        text, reason = rule(text)
        if reason:
            return text, reason
    return text, None


def rule_named(name: str) -> Rule:
    """Return the rule of this name. Raises: UserError if there is none."""
    if name not in RULES:
        raise UserError(
            f"there is no quality rule '{name}'; expected some of {', '.join(RULES)}."
            f"{nearest(name, RULES)}"
        )
    return RULES[name]
