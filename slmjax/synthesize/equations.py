"""Finds the calculations in a text and does them again."""

import re
from fractions import Fraction

# Digits with commas between thousands, or without; decimals after a point.
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SIGN = r"[-+*/x×÷·−]"
# Number, sign, number, ... = number, which nothing continues: no further sign, percent or power.
_EQUATION = re.compile(
    rf"({_NUMBER}(?: ?{_SIGN} ?{_NUMBER})+) ?= ?(-?{_NUMBER})(?!\w|[.,]\d| ?[-+*/×÷·^(=%°]| x )"
)
# What makes the numbers after it a part of something longer, such as "2x", "(1 + 2)" or "n x".
_PART_OF_MORE = re.compile(r"(?:[\w.,)%°^]|[=<>+*/×÷·−-] ?|\bx )$")
_LONGEST_PART = 3  # characters that _PART_OF_MORE looks at


def calculations(text: str) -> list[tuple[str, bool]]:
    """Return (equation, whether it holds) for every "number sign number ... = number" in a text.

    The result of a division counts as rounded to its digits: 10 / 3 = 3.33 holds. Equations that
    are part of something longer (x + 2 + 3 = 5, 2 + 3 = 5 + y, percent, powers) and divisions by
    zero are left out.
    """
    equations = []
    for match in _EQUATION.finditer(text):
        before = text[max(0, match.start() - _LONGEST_PART) : match.start()]
        if _PART_OF_MORE.search(before):
            continue
        expression, result = match.groups()
        value = _value(expression)
        if value is not None:
            error = abs(value - _fraction(result))
            equations.append((match[0], error <= _rounding(expression, result)))
    return equations


def _value(expression: str) -> Fraction | None:
    """Return the value of numbers joined by signs, products first; None for a division by zero."""
    # Numbers and signs take turns; a product changes the last term, a sum adds one.
    pieces = re.findall(rf"{_NUMBER}|{_SIGN}", expression)
    terms = [_fraction(pieces[0])]
    for sign, number in zip(pieces[1::2], pieces[2::2]):
        value = _fraction(number)
        if sign == "+":
            terms.append(value)
        elif sign in "-−":
            terms.append(-value)
        elif sign in "/÷":
            if not value:
                return None
            terms[-1] /= value
        else:
            terms[-1] *= value
    return sum(terms, Fraction(0))


def _rounding(expression: str, result: str) -> Fraction:
    """Return how far a result may be from the exact value: half a unit of its last digit."""
    if not re.search("[/÷]", expression):
        return Fraction(0)
    decimals = len(result.partition(".")[2])
    return Fraction(1, 2 * 10**decimals)


def _fraction(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
