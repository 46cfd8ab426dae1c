"""What an answer must stand: complete, in its format, with right answers and with equations that hold. Each failure has a reason."""

import re
from fractions import Fraction

from slmjax.synthesize.plan import Item
from slmjax.text.hashing import ALONE

WORDS = {"section": 80, "problems": 50, "reasoning": 15, "faq": 50, "table": 30, "dialogue": 50}
"""Fewest words of a document. Gopher's rule (Rae et al. 2021) has 50 for web pages; one solved problem is a document with fewer."""

_ANSWER = re.compile(r"\banswer:[*_ ]*(.*?)[*_ ]*(?:\||$)", re.IGNORECASE | re.MULTILINE)
_REFUSAL = re.compile(
    r"\W*(?:i'm sorry|i am sorry|i apologi[sz]e|sorry, but|i can(?:no|')t |as an ai\b|as a language)",
    re.IGNORECASE,
)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SIGN = r"[-+*/x×÷·−]"
_EQUATION = re.compile(
    rf"({_NUMBER}(?: ?{_SIGN} ?{_NUMBER})+) ?= ?(-?{_NUMBER})(?!\w|[.,]\d| ?[-+*/×÷·^(=%°]| x )"
)
_BEFORE = re.compile(r"(?:[\w.,)%°^]|[=<>+*/×÷·−-] ?|\bx )$")


_TAGS = r"(?:think|thinking|thoughts?|reasoning|seed:think)"
_OPENING = re.compile(rf"<{_TAGS}>|◁think▷|\[THINK\]|<\|channel\|>(?:analysis|commentary)")
_CLOSING = re.compile(rf"</{_TAGS}>|◁/think▷|\[/THINK\]|<\|channel\|>final<\|message\|>")
_SPECIAL = re.compile(r"<\|\w+\|>")
_ALONE = "".join(f"{chr(first)}-{chr(last)}" for first, last in ALONE)
_ALONE_LETTERS = re.compile(f"[{_ALONE}]")
_ALONE_OR_SIGNS = re.compile(f"[{_ALONE}\u3000-\u303f\uff00-\uffef]")  # with their own punctuation


def without_thoughts(text: str) -> str:
    """An answer without the thoughts of a reasoning model before it; "" where it has no others."""
    rest = text
    while closing := _CLOSING.search(rest):
        opening = _OPENING.search(rest, 0, closing.start())
        if opening and rest[: opening.start()].strip():
            return rest  # they are inside the document
        rest = rest[closing.end() :].lstrip()
    return "" if _OPENING.match(rest.lstrip()) else rest


def length(text: str) -> int:
    """Words of a text; in scripts without spaces two characters count as one."""
    return len(_ALONE_OR_SIGNS.sub(" ", text).split()) + len(_ALONE_LETTERS.findall(text)) // 2


def judge_text(item: Item, text: str, finish: str) -> tuple[str, str]:
    """(reason to reject, what was checked); the reason is "" for a document that stands.

    Checked is "answers" where all answers were compared with computed ones, "equations" where the document's own calculations were done
    again, and "" where nothing in it could be.

    Args:
      text: the answer; thoughts before it are no part of the document, see `without_thoughts`.
      finish: "stop" where the teacher ended by itself, "length" where it was cut, else the
        provider's word for why it ended.
    """
    whole, text = text, without_thoughts(text)
    if not text.strip():
        used_up = ", which used up max_tokens" if finish == "length" else ""
        return f"only thoughts{used_up}" if whole.strip() else "empty", ""
    if finish == "length":
        return "cut at max_tokens", ""
    if finish != "stop":
        return f"ended by {finish}", ""
    if _OPENING.search(text) or _CLOSING.search(text):
        return "thoughts in the text", ""
    if special := _SPECIAL.search(text):
        return f"special token in the text: {special[0]}", ""
    if _REFUSAL.match(text.replace("’", "'")):
        return "refusal", ""
    text = text.replace("：", ":")  # the colon of Chinese and Japanese, also behind English words
    if length(text) < WORDS[item.format]:
        return "too short", ""
    if reason := structure(item.format, text):
        return reason, ""
    equations = calculations(text)
    for written, holds in equations:
        if not holds:
            return f"false equation: {written}", ""
    if item.problems:
        found = answers(text)
        if len(found) != len(item.problems):
            return f"{len(found)} answers to {len(item.problems)} problems", ""
        for answer, problem in zip(found, item.problems):
            if not same(answer, problem.answer):
                return f"wrong answer: {answer[:40]} instead of {problem.answer}", ""
        return "", "answers"
    return "", "equations" if equations else ""


def structure(form: str, text: str) -> str:
    """Why a text is not in its format, or ""."""
    lines = [line.strip() for line in text.split("\n")]

    def starting(*words: str) -> int:
        return sum(line.lstrip("*#_ ").lower().startswith(words) for line in lines)

    if form == "section" and not any(line.startswith("#") for line in lines):
        return "no title or heading"
    if form == "problems" and (starting("problem") < 1 or not answers(text)):
        return "no numbered problems with answers"
    if form == "reasoning" and (
        len([line for line in lines if line]) < 3 or len(answers(text)) != 1
    ):
        return "no steps with one answer"
    if form == "faq" and (starting("q:") < 3 or starting("a:") < starting("q:")):
        return "fewer than three questions with answers"
    if form == "dialogue" and (starting("teacher:") < 3 or starting("student:") < 2):
        return "fewer than six turns"
    if form == "table":
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
        if len(rows) < 5 or len(set(rows)) > 1 or rows[0] < 3:
            return "no table with three rows of equal length"
    return ""


def answers(text: str) -> list[str]:
    """What stands in the answer lines ("Answer: 42." gives "42"), in order."""
    return [found.strip().removesuffix(".") for found in _ANSWER.findall(text)]


def same(answer: str, expected: str) -> bool:
    """Whether two answers agree: as numbers where both are, else as words, whatever their case, "$" and final points."""
    cleaned = [
        re.sub(r"[$*_`]", "", text).strip().rstrip(".").casefold() for text in (answer, expected)
    ]
    try:
        return Fraction(cleaned[0].replace(",", "")) == Fraction(cleaned[1].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return cleaned[0] == cleaned[1]


def calculations(text: str) -> list[tuple[str, bool]]:
    """(equation, whether it holds) of every "number sign number ... = number" that stands alone.

    A result with fewer digits is taken as rounded: 10 / 3 = 3.33 holds. What goes on (x + 2 + 3 = 5, 2 + 3 = 5 + y, percent, powers) is
    left alone, as are divisions by zero.
    """
    out = []
    for found in _EQUATION.finditer(text):
        if _BEFORE.search(text[max(0, found.start() - 3) : found.start()]):
            continue
        value = _value(found[1])
        if value is not None:
            result = Fraction(found[2].replace(",", ""))
            rounding = (
                Fraction(1, 2 * 10 ** len(found[2].partition(".")[2]))
                if re.search("[/÷]", found[1])
                else 0
            )
            out.append((found[0], abs(value - result) <= rounding))
    return out


def _value(expression: str) -> Fraction | None:
    """The value of numbers joined by signs; products before sums. None for a division by zero."""
    pieces = re.findall(rf"{_NUMBER}|{_SIGN}", expression)
    terms = [Fraction(pieces[0].replace(",", ""))]
    for sign, number in zip(pieces[1::2], pieces[2::2]):
        value = Fraction(number.replace(",", ""))
        if sign in "+-−":
            terms.append(value if sign == "+" else -value)
        elif sign in "/÷":
            if not value:
                return None
            terms[-1] /= value
        else:
            terms[-1] *= value
    return sum(terms, Fraction(0))
