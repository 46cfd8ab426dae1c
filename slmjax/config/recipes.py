"""Recipes: Python files with a get_config(), and the config.json of a run."""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.base import FIELDS, GROUPS, base, literal
from slmjax.config.groups import STAGE_OF
from slmjax.config.removed import REMOVED, removed_sentence
from slmjax.config.saved import from_dict
from slmjax.config.trust import check_trust
from slmjax.errors import UserError, line_of_the_user, nearest


def load_recipe(path: str, trust: Sequence[str] = ()) -> ConfigDict:
    """The config that `path`'s get_config() returns, or of a work directory's config.json; `path:argument` passes an argument on.

    Args:
      trust: names of code that a config.json may name, see check_trust.
    Raises: UserError where the file is missing, fails, or has no get_config, or a config.json names code that is not trusted.
    """
    path, _, argument = path.partition(":")
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        recipes = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UserError(f"--config: no file '{path}'.{nearest(path, recipes)}")
    try:
        if file.suffix == ".json":
            config = _saved(file)
            check_trust(config, trust, path)
            return config
        config = _recipe(file, argument)
    except UserError:
        raise
    except Exception as error:  # of the user's own file, or of a module that it imports
        place, line = line_of_the_user(error) or (path, 0)
        other = "" if os.path.abspath(place) == os.path.abspath(file) else f"'{place}'"
        where = ", ".join(filter(None, [other, f"line {line}" if line else ""]))
        raise UserError(
            f"--config: '{path}'{', ' if where else ''}{where}: {_first_sentence(error)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config() of '{path}' returned {type(config).__name__}; expected what slmjax.config.base() returns."
        )
    _check_names(config, f"--config: '{path}': ")
    if missing := [name for name in base() if name not in config]:
        raise UserError(
            f"--config: get_config() of '{path}' returned a config without '{missing[0]}'; start from slmjax.config.base()."
        )
    return config


def _saved(file: Path) -> ConfigDict:
    """The config of a config.json."""
    values = json.loads(file.read_text("utf-8"))
    try:
        config = from_dict(values)
    except UserError as error:
        raise UserError(f"--config: '{file}': {error}") from error
    missing = [name for name in GROUPS if name not in values and name not in STAGE_OF]
    if missing:
        raise UserError(f"--config: '{file}' is no config of a run; it has no '{missing[0]}'.")
    return config


def _check_names(values: ConfigDict, where: str, prefix: str = "") -> None:
    """Raises: UserError for a name that is no field's, with the nearest one."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in GROUPS and isinstance(value, ConfigDict):
            _check_names(value, where, f"{name}.")
        elif name in REMOVED:
            raise UserError(f"{where}{removed_sentence(name)}")
        elif name not in FIELDS and name not in GROUPS:
            raise UserError(f"{where}there is no field config.{name}.{nearest(name, FIELDS)}")


def _recipe(file: Path, argument: str) -> Any:
    """What the recipe's get_config returns."""
    spec = importlib.util.spec_from_file_location(f"slmjax_recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: '{file}' is not a Python file with a get_config().")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config: '{file}' has no get_config().")
        return module.get_config(argument) if argument else module.get_config()
    except SystemExit as error:
        raise RuntimeError(f"the recipe ends the program (exit {error.code})").with_traceback(
            error.__traceback__
        ) from error
    finally:
        sys.dont_write_bytecode = kept


def _first_sentence(error: Exception) -> str:
    """What a recipe's error says; of ml_collections' unknown fields, without the listing of the known ones."""
    said = (
        str(error) if isinstance(error, UnicodeError) else str(error.args[0]) if error.args else ""
    )
    text = str(literal(said))  # ml_collections quotes its own text once more
    told = text.strip().splitlines() or [type(error).__name__]
    if wrong := re.match(
        r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '(.*)'>.*<class '(.*)'>",
        told[0],
    ):
        name, value, kind, expected = wrong.groups()
        like = ", such as ('attention',)" if expected == "tuple" else ""
        return f"the field '{name}' is set to {value} ({kind}); expected a value of the type {expected.rpartition('.')[2]}{like}."
    if missing := re.match(r'Key "(\w+)" does not exist', told[0]):
        for name in REMOVED:
            if name.endswith(f".{missing[1]}"):
                return removed_sentence(name)
    hint = f" {told[-1]}" if told[-1].startswith("Did you mean") else ""
    known = (UserError, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError)
    kind = (
        ""
        if isinstance(error, known) or told == [type(error).__name__]
        else f"{type(error).__name__}: "
    )
    return kind + told[0].partition(" Other fields present")[0].rstrip(".") + "." + hint
