"""Finds the calculations in a text and computes them again."""

import re
from fractions import Fraction

# Digits with commas between thousands, or without; decimals after a point.
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SIGN = r"[-+*/x×÷·−]"
# "number sign number ... = number". After the last number comes neither a further sign nor a
# bracket, "=", percent, degree or power: the right side would be more than that number.
_EQUATION = re.compile(
    rf"({_NUMBER}(?: ?{_SIGN} ?{_NUMBER})+) ?= ?(-?{_NUMBER})(?!\w|[.,]\d| ?[-+*/×÷·^(=%°]| x )"
)
# The text before an equation, where it makes the equation a part of a longer one: "y + ", "(y) x ".
_CONTINUED = re.compile(r"(?:[\w.,)%°^]|[=<>+*/×÷·−-] ?|\bx )$")
_LOOK_BACK = 3  # characters before an equation that _CONTINUED may need: a blank, "x", a blank


def calculations(text: str) -> list[tuple[str, bool]]:
    """Return (equation, whether it holds) for every "number sign number ... = number" in a text.

    The result of a division counts as rounded to its digits: 10 / 3 = 3.33 holds. Equations that
    are part of something longer (x + 2 + 3 = 5, 2 + 3 = 5 + y, percent, powers) and divisions by
    zero are left out.
    """
    equations = []
    for match in _EQUATION.finditer(text):
        before = text[max(0, match.start() - _LOOK_BACK) : match.start()]
        if _CONTINUED.search(before):
            continue
        expression, result = match.groups()
        value = _value(expression)
        if value is not None:
            error = abs(value - _fraction(result))
            holds = error <= _rounding(expression, result)
            equations.append((match[0], holds))
    return equations


def _value(expression: str) -> Fraction | None:
    """Return the value of numbers joined by signs, products first; None for a division by zero."""
    # Numbers and signs alternate. A plus or minus adds a term, any other sign changes the last one.
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
    """Return how far a result may be from the exact value.

    After a division that is half a unit of the result's last digit; else nothing.
    """
    if not re.search("[/÷]", expression):
        return Fraction(0)
    decimals = len(result.partition(".")[2])
    return Fraction(1, 2 * 10**decimals)


def _fraction(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
