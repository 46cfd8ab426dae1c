"""The thoughts that a reasoning model writes before its answer, in the tags of the usual models."""

import re

_TAGS = r"(?:think|thinking|thoughts?|reasoning|seed:think)"
_OPENING = re.compile(rf"<{_TAGS}>|◁think▷|\[THINK\]|<\|channel\|>(?:analysis|commentary)")
_CLOSING = re.compile(rf"</{_TAGS}>|◁/think▷|\[/THINK\]|<\|channel\|>final<\|message\|>")


def without_thoughts(text: str) -> str:
    """Return an answer without the thoughts before it; "" where there is nothing else.

    Thoughts inside the document stay, so that the checks find them there. A closing tag alone also
    ends thoughts: some servers put the opening tag into the prompt.
    """
    rest = text
    while closing := _CLOSING.search(rest):
        opening = _OPENING.search(rest, 0, closing.start())
        if opening and rest[: opening.start()].strip():
            return rest
        rest = rest[closing.end() :].lstrip()
    if _OPENING.match(rest.lstrip()):  # the answer was cut before the thoughts ended
        return ""
    return rest


def has_thoughts(document: str) -> bool:
    """Return whether a document holds a tag of thoughts."""
    return bool(_OPENING.search(document) or _CLOSING.search(document))
