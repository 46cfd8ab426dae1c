"""The one exception that is meant for the person at the keyboard: a mistake that one sentence explains."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user: the launcher prints its one sentence and leaves with exit status 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence with the valid name closest to `name` (" Did you mean 'layers'?"), or "" where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
