"""The rules of C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.2, and the code of TensorFlow Datasets."""

import re

from slmjax.curate.words import sentences

CITATION = re.compile(
    r"\[\d*]|\[edit]|\[citation needed]"
)  # of Wikipedia; c4_utils.py of TensorFlow Datasets, as is POLICY
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def c4(
    text: str,
    *,
    terminal_punctuation: bool = True,
    min_sentences: int = 5,
    min_words: int = 3,
    max_word_length: int = 1000,
) -> tuple[str, str | None]:
    """Keep lines that look like prose, without citation marks; drop a text with "lorem ipsum", a curly bracket or too few sentences.

    Lines lose their indentation and blank ones go: this is a rule for web pages, not for code or poems.

    Args:
      terminal_punctuation: drop lines that do not end in . ? ! or a quotation mark, or end in "..."; FineWeb (Penedo et al. 2024) does not.
      min_sentences: in the lines kept.
      min_words: drop lines with fewer, between white space.
      max_word_length: drop lines with a longer word, in characters.
    Lines that mention JavaScript or one of POLICY are dropped, too. C4's list of bad words is not part of this rule.
    Source: Raffel et al. 2020, section 2.2; max_word_length and POLICY from their code.
    """
    kept, found = [], 0
    for line in text.splitlines():
        pieces = line.split()
        line = CITATION.sub("", line.strip())
        lower = line.lower()
        if len(pieces) < min_words or max(map(len, pieces), default=0) > max_word_length:
            continue
        if terminal_punctuation and (
            not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")
        ):
            continue
        if "lorem ipsum" in lower:
            return text, "c4: lorem ipsum"
        if "javascript" in lower:
            continue
        if "{" in line:
            return text, "c4: curly bracket"
        if any(phrase in lower for phrase in POLICY):
            continue
        kept.append(line)
        if found < min_sentences:
            found += sentences(line, min_sentences - found)
    if found < min_sentences:
        return text, "c4: too few sentences"
    return "\n".join(kept).strip(), None
