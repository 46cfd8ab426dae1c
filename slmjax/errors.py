"""The exception that is meant for the person at the keyboard, and the wording of its sentence."""

import difflib
import importlib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from typing import Any

# Folders of code that is not the user's: this library and Python's own.
_LIBRARY = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in (os.path.dirname(__file__), sysconfig.get_paths()["stdlib"])
)
# Folders of installed packages.
_INSTALLED = {"site-packages", "dist-packages"}

# Advice on a file that somebody has deleted.
HOW_TO_RESTORE = "the command that trained the run, started again, writes it anew"


class UserError(Exception):
    """A mistake of the user: the launcher prints its one sentence and leaves with exit status 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'layers'?" with the closest valid name; "" where none is close."""
    close = difflib.get_close_matches(str(name), list(map(str, names)), n=1)
    if not close:
        return ""
    return f" Did you mean '{close[0]}'?"


def empty_value(name: str) -> UserError:
    """Return the error for an option that is given without a value.

    Args:
      name: of the option, with its --.
    """
    return UserError(
        f"{name}= is empty; give it a value or leave it out (is a shell variable not set?)."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its name where it has none."""
    if isinstance(error, SyntaxError):
        text = error.msg
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str of a KeyError puts it in quotation marks
    else:
        text = str(error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def line_of_the_user(error: BaseException) -> tuple[str, int] | None:
    """Return (file, line) of the innermost user's code in which an error arose; None without any.

    The user's code, such as a recipe or a mixer, belongs neither to this library nor to Python nor
    to an installed package.
    """
    places = []
    for frame in traceback.extract_tb(error.__traceback__):
        places.append((frame.filename, frame.lineno or 0))
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 0))
    # The innermost comes last.
    for file, line in reversed(places):
        if _is_the_users(file):
            return file, line
    return None


def users_error(error: BaseException) -> str:
    """Return an error as text, with its place in the user's code: "'a.py', line 3: KeyError: x".

    An error that arose elsewhere has only its own text.
    """
    sentence = first_line(error).rstrip(".")
    place = line_of_the_user(error)
    if place is None:
        return sentence
    file, line = place
    return f"'{file}', line {line}: {type(error).__name__}: {sentence}"


def imported(name: str, what: str) -> Any:
    """Return the object that an import path "module:name" names.

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
        hint = nearest(attribute, dir(code))
        raise UserError(f"{what} '{name}': module '{module}' has no attribute '{attribute}'.{hint}")
    return getattr(code, attribute)


def _is_the_users(file: str) -> bool:
    if file.startswith("<ipython-input"):  # a notebook's cell
        return True
    if file.startswith("<"):  # code without a file, such as "<frozen importlib._bootstrap>"
        return False
    if file.endswith((".pyx", ".pxi")):  # Cython of a package, named without its folder
        return False
    path = os.path.realpath(file)
    if path.startswith(_LIBRARY) or _INSTALLED.intersection(path.split(os.sep)):
        return False
    # Compiled code of packages names files that are not there.
    return os.path.isfile(path)
