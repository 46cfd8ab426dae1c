"""Finds the thoughts that a reasoning model writes before its answer, by the usual models' tags."""

import re

_TAGS = r"(?:think|thinking|thoughts?|reasoning|seed:think)"
_OPENING = re.compile(rf"<{_TAGS}>|◁think▷|\[THINK\]|<\|channel\|>(?:analysis|commentary)")
_CLOSING = re.compile(rf"</{_TAGS}>|◁/think▷|\[/THINK\]|<\|channel\|>final<\|message\|>")


def without_thoughts(text: str) -> str:
    """Return an answer without the thoughts before it; "" where it holds nothing else.

    Thoughts inside the document stay, so that the checks find them there.
    """
    document = text
    while closing := _CLOSING.search(document):
        opening = _OPENING.search(document, 0, closing.start())
        if opening and document[: opening.start()].strip():  # the thoughts are inside the document
            return document
        # Also without an opening tag: some servers put it into the prompt.
        document = document[closing.end() :].lstrip()
    if _OPENING.match(document.lstrip()):  # the answer was cut before the thoughts ended
        return ""
    return document


def has_thoughts(document: str) -> bool:
    """Return whether a document holds a tag of thoughts."""
    return bool(_OPENING.search(document) or _CLOSING.search(document))
