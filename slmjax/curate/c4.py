"""The rules of C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.2."""

import re

from slmjax.curate.words import sentences

# Citation marks of Wikipedia. This and POLICY are from c4_utils.py of TensorFlow Datasets.
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
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
    """Keep lines that look like prose, without citation marks, and drop texts without prose.

    Dropped are texts with "lorem ipsum", a curly bracket or too few sentences. Lines that mention
    JavaScript or a phrase of POLICY are taken out. Lines lose their indentation, and blank lines
    go: this is a rule for web pages, not for code or poems. C4's list of bad words is not part of
    this rule.

    Args:
      terminal_punctuation: drop lines that do not end in . ? ! or a quotation mark, or end in
        "..."; FineWeb (Penedo et al. 2024) does not.
      min_sentences: in the lines kept.
      min_words: drop lines with fewer, between white space.
      max_word_length: drop lines with a longer word, in characters.
    Returns: the lines kept, and the reason to drop the document or None, see quality.py.
    Source: Raffel et al. 2020, section 2.2; max_word_length and POLICY from the code of TensorFlow
      Datasets.
    """
    kept, sentence_count = [], 0
    for line_as_read in text.splitlines():
        # Citation marks still count here, as words or as parts of words.
        words = line_as_read.split()
        if len(words) < min_words or max(map(len, words), default=0) > max_word_length:
            continue
        line = CITATION.sub("", line_as_read.strip())
        # Phrases are looked for in any case.
        lower = line.lower()
        if terminal_punctuation and not _ends_sentence(line):
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
        # Counting sentences is slow: it ends once there are enough.
        if sentence_count < min_sentences:
            sentence_count += sentences(line, min_sentences - sentence_count)
    if sentence_count < min_sentences:
        return text, "c4: too few sentences"
    return "\n".join(kept).strip(), None


def _ends_sentence(line: str) -> bool:
    return line.endswith((".", "?", "!", '"', "'")) and not line.endswith("...")
