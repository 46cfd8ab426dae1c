"""Numbers in answers to word problems: two extractions of the lm-eval harness, and a stricter one.

Everything here works on texts alone.
"""

import re
from fractions import Fraction

# What lm-eval returns where an answer holds no number.
NO_NUMBER = "[invalid]"
# The task gsm8k, version 3, of lm-eval 0.4.13.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", "(?s).*#### ", r"\.$")

# 1,200.50, 1200 or .5.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A number, or the numerator and denominator of a fraction, or a whole number and a fraction. A
# hyphen is a sign where no word or number stands before it: 7-3 are 7 and 3. A percent sign needs
# no place of its own: 50% is 50.
_VALUE = re.compile(
    r"(?<![\w.])(?P<sign>[-−]?)(?:[$€£¥]\s?)?(?P<inner>[-−]?)"
    rf"(?:(?P<whole>[0-9]+)\s(?=[0-9]+/[0-9]))?(?P<digits>{_DIGITS})"
    r"(?:\s?/\s?(?P<below>[0-9]+))?"
)
# Longer matches are no numbers that anybody means, and Python refuses to read thousands of digits.
_LONGEST = 100  # characters
# The last of these in a text stands before the final answer.
_MARK = re.compile(r"####|answer is|answer:", re.IGNORECASE)


def lm_eval_strict(text: str) -> str:
    """Return lm-eval's "strict-match" of a completion, or NO_NUMBER.

    It is the first number after "#### ", with its commas and full stops.

    Known defects, kept so that figures can be compared with published ones:
      - "#### $18" and "####18" have no number.
      - "#### ,." is a number.
      - The first "#### " counts, not the last one.

    Source: EleutherAI's lm-evaluation-harness 0.4.13, tasks/gsm8k/gsm8k.yaml.
    """
    matches = _STRICT.findall(text)
    return matches[0].strip() if matches else NO_NUMBER


def lm_eval_flexible(text: str) -> str:
    """Return lm-eval's "flexible-extract" of a completion, or NO_NUMBER.

    It is the last run of digits, dollar signs, commas and full stops.

    Known defects, kept so that figures can be compared with published ones:
      - "So it is 18 ..." gives "...", and "5 ,. done" gives ",.".
      - "7-3" gives "-3", and "1/2" gives "2".
      - "50%" gives "50", and "12:30" gives "30".

    Source: as `lm_eval_strict`.
    """
    matches = _FLEXIBLE.findall(text)
    if not matches:
        return NO_NUMBER
    # One of the two groups is empty.
    first, second = matches[-1]
    return (first or second).strip()


def lm_eval_match(extracted: str, gold: str) -> bool:
    """Return whether lm-eval takes an extracted number for the right one.

    It compares texts: without commas, dollar signs, all up to "#### " and a full stop at the end.
    So "18.0" is not 18.

    Args:
      gold: the whole worked solution, or its number alone.
    Source: as `lm_eval_strict`, and its metric exact_match.
    """
    for pattern in _IGNORED:
        extracted = re.sub(pattern, "", extracted)
        gold = re.sub(pattern, "", gold)
    return extracted.lower() == gold.lower()


def number_answer(text: str) -> Fraction | None:
    """Return the number that a completion gives as its answer; None where it gives none.

    It is the first number on the line of the last "####", "answer is" or "Answer:", or on the next
    line where nothing follows that mark. Without a mark it is the last number of the text.
    Numbers may have a sign, a currency, thousands' commas, decimals or a percent sign, or be
    fractions such as 3/4 and 2 1/2. The percent sign is left out, as in GSM8K: 50% is 50.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        values = _values(text)
        return values[-1] if values else None
    line = text[marks[-1].end() :].lstrip(": \n*").partition("\n")[0]
    values = _values(line)
    return values[0] if values else None


def number_text(value: Fraction, places: int = 6) -> str:
    """Return a number with at most so many decimals, rounded half to even: "18", "-2.5"."""
    scaled = round(abs(value) * 10**places)
    whole, part = divmod(scaled, 10**places)
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{part:0{places}d}".rstrip("0").rstrip(".")


def _values(text: str) -> list[Fraction]:
    """Return the numbers of a text, in order; a division by zero is none."""
    values = []
    for match in _VALUE.finditer(text):
        if len(match[0]) > _LONGEST:
            continue
        below = int(match["below"] or 1)
        if below == 0:
            continue
        value = Fraction(match["digits"].replace(",", "")) / below
        value += int(match["whole"] or 0)
        is_negative = match["sign"] or match["inner"]
        values.append(-value if is_negative else value)
    return values
