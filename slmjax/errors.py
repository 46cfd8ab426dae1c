"""The one exception that is meant for the person at the keyboard: a mistake that one sentence explains."""

import difflib
import importlib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from typing import Any

_LIBRARY = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in (os.path.dirname(__file__), sysconfig.get_paths()["stdlib"])
)
ANEW = "the command that trained the run, started again, writes it anew"  # advice on a file that somebody has deleted


class UserError(Exception):
    """A mistake of the user: the launcher prints its one sentence and leaves with exit status 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence with the valid name closest to `name` (" Did you mean 'layers'?"), or "" where none is close."""
    close = difflib.get_close_matches(str(name), [str(other) for other in names], n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    quoted = isinstance(error, KeyError) and error.args  # of a KeyError, str gives the quoted text
    text = error.msg if isinstance(error, SyntaxError) else str(error.args[0] if quoted else error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def line_of_the_user(error: BaseException) -> tuple[str, int] | None:
    """(file, line) of the user's own code in which an error arose, a recipe or a mixer; None where there is none.

    The user's own is what belongs neither to this library nor to Python nor to an installed package.
    """
    frames = [
        (frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    own = [(file, line) for file, line in frames if _is_the_users(file)]
    return own[-1] if own else None


def users_error(error: BaseException) -> str:
    """Return what an error of the user's own code says, with its place: "'a.py', line 3: KeyError: x"."""
    place = line_of_the_user(error)
    where = f"'{place[0]}', line {place[1]}: {type(error).__name__}: " if place else ""
    return where + first_line(error).rstrip(".")


def imported(name: str, what: str) -> Any:
    """Return what an import path "module:name" names.

    Args:
      what: how an error begins, such as "config.model.pattern names the mixer".
    Raises: UserError where the path leads nowhere or the module fails.
    """
    module, _, attribute = name.partition(":")
    try:
        code = importlib.import_module(module)
    except Exception as error:  # the user's own module runs here
        raise UserError(f"{what} '{name}': {users_error(error)}.") from error
    if not hasattr(code, attribute):
        raise UserError(
            f"{what} '{name}': module '{module}' has no attribute '{attribute}'.{nearest(attribute, dir(code))}"
        )
    return getattr(code, attribute)


def _is_the_users(file: str) -> bool:
    if file.startswith("<ipython-input"):  # a notebook's cell
        return True
    if file.endswith((".pyx", ".pxi")):  # of a compiled package, without its folder
        return False
    path = os.path.realpath(file)
    installed = {"site-packages", "dist-packages"} & set(path.split(os.sep))
    # Compiled code of packages names files that are not there.
    return not (file.startswith("<") or installed or path.startswith(_LIBRARY)) and os.path.isfile(
        path
    )
