"""Checks a teacher's answer before it becomes a document; a rejected one gets a reason.

It must be complete and in its format, its answers must be right and its equations must hold.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from slmjax.synthesize.equations import calculations
from slmjax.synthesize.plan import Item
from slmjax.synthesize.thoughts import has_thoughts, without_thoughts
from slmjax.text.hashing import ALONE
from slmjax.textbook.passages import Passage

# Fewest words of a document. Gopher's rule (Rae et al. 2021) has 50 for web pages; a single solved
# problem is a whole document with fewer.
WORDS = {"section": 80, "problems": 50, "reasoning": 15, "faq": 50, "table": 30, "dialogue": 50}

# What follows "Answer:", up to the end of the line or of a table's cell, without emphasis.
_ANSWER = re.compile(r"\banswer:[*_ ]*(.*?)[*_ ]*(?:\||$)", re.IGNORECASE | re.MULTILINE)
# How refusals begin.
_REFUSAL = re.compile(
    r"\W*(?:i'm sorry|i am sorry|i apologi[sz]e|sorry, but|i can(?:no|')t "
    r"|as an ai\b|as a language)",
    re.IGNORECASE,
)
_SPECIAL = re.compile(r"<\|\w+\|>")  # a token of a chat template, such as <|im_end|>
# In Markdown a line may begin with marks of emphasis and headings, as in "**Q:** ...".
_MARKS = "*#_ "
_BAR = re.compile(r"(?<!\\)\|")  # at an edge of a table's cell; "\|" is a bar inside a cell

# Letters of scripts that set no spaces between words, such as Chinese and Thai.
_ALONE = "".join(f"{chr(first)}-{chr(last)}" for first, last in ALONE)
_ALONE_LETTERS = re.compile(f"[{_ALONE}]")
# These letters, their punctuation (U+3000 to U+303F), and full-width forms (U+FF00 to U+FFEF).
_ALONE_OR_SIGNS = re.compile(f"[{_ALONE}\u3000-\u303f\uff00-\uffef]")


def judge_text(item: Item, text: str, finish: str) -> tuple[str, str]:
    """Return (reason to reject an answer, what was checked in it).

    The reason is "" for a document that is accepted. What was checked is then "answers" where all
    answers were compared with computed ones, "equations" where the document's own calculations were
    done again, and "" where it holds nothing that could be checked. It is "" for a rejected one.

    Args:
      item: what was asked for.
      text: the answer; thoughts before it are not part of the document, see `without_thoughts`.
      finish: "stop" where the teacher ended by itself, "length" where it was cut, else the
        provider's word for why it ended.
    """
    document = without_thoughts(text)
    reason = _incomplete(text, document, finish) or _unclean(document)
    if reason:
        return reason, ""
    document = document.replace("：", ":")  # the full-width colon of Chinese and Japanese
    if count_document_words(document) < WORDS[item.format]:
        return "too short", ""
    reason = format_fault(item.format, document)
    if reason:
        return reason, ""
    equations = calculations(document)
    # Also for problems with known answers: a right answer can follow from wrong steps.
    for equation, holds in equations:
        if not holds:
            return f"false equation: {equation}", ""
    if not item.problems:
        checked = "equations" if equations else ""
        return "", checked
    reason = _wrong_answer(answers(document), item.problems)
    if reason:
        return reason, ""
    return "", "answers"


def format_fault(form: str, text: str) -> str:
    """Return why a text is not in its format (a key of plan.FORMATS); "" where it is."""
    lines = [line.strip() for line in text.split("\n")]
    reason, is_well_formed = _FORMAT_CHECKS[form]
    return "" if is_well_formed(lines) else reason


def answers(text: str) -> list[str]:
    """Return what the answer lines say ("Answer: 42." gives "42"), in order."""
    return [answer.strip().removesuffix(".") for answer in _ANSWER.findall(text)]


def same_answer(answer: str, expected: str) -> bool:
    """Return whether two answers agree: as numbers if both are numbers, else as words.

    Letter case, "$", Markdown's marks and final points do not matter.
    """
    answer, expected = _plain(answer), _plain(expected)
    # Fraction reads "42", "42.0" and "1/2"; commas separate thousands. It refuses words.
    try:
        return Fraction(answer.replace(",", "")) == Fraction(expected.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return answer == expected


def count_document_words(text: str) -> int:
    """Return how many words a text has; in scripts without spaces, two letters count as a word."""
    words = _ALONE_OR_SIGNS.sub(" ", text).split()
    return len(words) + len(_ALONE_LETTERS.findall(text)) // 2


def _incomplete(text: str, document: str, finish: str) -> str:
    """Return why an answer is not whole, or "". `document` is the answer without thoughts."""
    if not document.strip():
        if not text.strip():
            return "empty"
        used_up = ", which used up max_tokens" if finish == "length" else ""
        return f"only thoughts{used_up}"
    if finish == "length":
        return "cut at max_tokens"
    if finish != "stop":
        return f"ended by {finish}"
    return ""


def _unclean(document: str) -> str:
    """Return what a document holds that no document should hold, or ""."""
    if has_thoughts(document):
        return "thoughts in the text"
    special = _SPECIAL.search(document)
    if special:
        return f"special token in the text: {special[0]}"
    if _REFUSAL.match(document.replace("’", "'")):
        return "refusal"
    return ""


def _wrong_answer(given: Sequence[str], problems: Sequence[Passage]) -> str:
    """Return how the answers differ from those of the problems, or ""."""
    if len(given) != len(problems):
        return f"{len(given)} answers to {len(problems)} problems"
    for answer, problem in zip(given, problems):
        if not same_answer(answer, problem.answer):
            return f"wrong answer: {answer[:40]} instead of {problem.answer}"
    return ""


def _plain(answer: str) -> str:
    return re.sub(r"[$*_`]", "", answer).strip().rstrip(".").casefold()


# The functions below take a document's lines, stripped. They may ask for less than the prompt in
# plan.FORMATS does.


def _count_starting(lines: Sequence[str], word: str) -> int:
    """Return how many lines start with a word in lower case, after any of Markdown's marks."""
    return sum(line.lstrip(_MARKS).lower().startswith(word) for line in lines)


def _is_section(lines: Sequence[str]) -> bool:
    return any(line.startswith("#") for line in lines)


def _is_problem_set(lines: Sequence[str]) -> bool:
    return _count_starting(lines, "problem") >= 1 and len(answers("\n".join(lines))) >= 1


def _is_reasoning(lines: Sequence[str]) -> bool:
    # At least the problem, one step and the answer.
    written = [line for line in lines if line]
    return len(written) >= 3 and len(answers("\n".join(lines))) == 1


def _is_faq(lines: Sequence[str]) -> bool:
    questions = _count_starting(lines, "q:")
    return questions >= 3 and _count_starting(lines, "a:") >= questions


def _has_table(lines: Sequence[str]) -> bool:
    # A row with a missing or an extra cell has another number of bars than the others.
    bars = [len(_BAR.findall(line)) for line in lines if line.startswith("|")]
    # The header, the line of dashes and three rows; two cells have three bars.
    return len(bars) >= 5 and len(set(bars)) == 1 and bars[0] >= 3


def _is_dialogue(lines: Sequence[str]) -> bool:
    # One turn of the student may be missing.
    return _count_starting(lines, "teacher:") >= 3 and _count_starting(lines, "student:") >= 2


# For each format: the reason to reject a text that is not in it, and the check of its lines.
_FORMAT_CHECKS: dict[str, tuple[str, Callable[[Sequence[str]], bool]]] = {
    "section": ("no title or heading", _is_section),
    "problems": ("no numbered problems with answers", _is_problem_set),
    "reasoning": ("no steps with one answer", _is_reasoning),
    "faq": ("fewer than three questions with answers", _is_faq),
    "table": ("no table with three rows of equal length", _has_table),
    "dialogue": ("fewer than six turns", _is_dialogue),
}
