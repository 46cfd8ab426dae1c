"""Errors of providers of language models, in the many forms in which their endpoints send them."""

import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

SHOWN = 300  # most characters of a provider's words that an error message repeats
MAX_WAIT = 600.0  # longest Retry-After that is honoured, in seconds

# {HTTP status: parts of the names that providers give to such errors}. The first match counts, so
# that 400, whose parts are the most general, comes last.
CODES = {
    401: ("api_key", "authentication", "unauthorized"),
    402: ("insufficient_quota", "insufficient_credits", "payment"),
    403: ("permission",),
    404: ("model_not_found", "not_found_error"),
    429: ("rate_limit", "too_many_requests"),
    400: (
        "invalid",
        "unsupported",
        "bad_request",
        "badrequest",
        "context_length",
        "content_policy",
    ),
}


class Complaint(Exception):
    """An error that a provider reports in the body: its HTTP status (0: unknown) and its words."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status
        self.words = words


def raise_complaint(data: Any) -> None:
    """Raise Complaint where a parsed body, or one choice of it, reports an error.

    The usual forms are {"error": {...}}, {"error": "words"}, {"object": "error", ...} and a list of
    these. An object with neither "choices" nor "message" is no completion, so that its words are
    those of an error, too.
    """
    if isinstance(data, list):
        data = next((entry for entry in data if isinstance(entry, dict)), {})
    if not isinstance(data, dict):
        return
    error = data.get("error")
    # An error without the field "error" has its words and codes in the object itself.
    is_completion = "choices" in data or "message" in data
    if not error and (data.get("object") == "error" or not is_completion):
        error = data
    words = error_words(error)
    if not words:
        return
    codes = [data.get("code"), data.get("status")]
    if isinstance(error, dict):
        codes = [error.get("code"), error.get("status"), error.get("type"), *codes]
    statuses = filter(None, map(status_of, codes))
    raise Complaint(next(statuses, 0), words)


def status_of(code: Any) -> int:
    """Return the HTTP status that an error's code means: a number, or a name in CODES; else 0."""
    if isinstance(code, str) and code.isdecimal():
        code = float(code)
    if isinstance(code, int | float):  # infinity and NaN, which JSON can hold, are in no range
        return int(code) if 400 <= code < 600 else 0
    name = str(code).lower()
    for status, parts in CODES.items():
        if any(part in name for part in parts):
            return status
    return 0


def error_words(error: Any) -> str:
    """Return the provider's words in an error of one of the usual forms; "" where it has none."""
    if isinstance(error, list):
        error = error[0] if error else ""
    if isinstance(error, str):
        return shortened(error)
    if not isinstance(error, dict):
        return ""
    for name in ("message", "detail", "error", "msg", "title", "error_description"):
        words = error_words(error.get(name))
        if words:
            return words
    return ""


def shortened(text: str) -> str:
    """Return the beginning of a text in one line, without HTML."""
    # Elements whose content a browser does not show, and all other tags.
    text = re.sub(r"(?s)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text)
    # Half a surrogate pair could be neither printed nor written.
    printable = text.encode("utf-8", "replace").decode()
    return " ".join(printable.split())[:SHOWN]


def retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, at most MAX_WAIT; 0 where it is not valid.

    Args:
      value: a number of seconds or an HTTP date (RFC 9110, section 10.2.3).
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    if not math.isfinite(seconds):
        return 0.0
    return min(max(seconds, 0.0), MAX_WAIT)
