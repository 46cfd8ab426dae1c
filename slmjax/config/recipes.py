"""Recipes: Python files with a get_config(), and the config.json of a run."""

import contextlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from slmjax.config.base import FIELDS, GROUPS, base
from slmjax.config.fields import literal
from slmjax.config.groups import STAGE_OF
from slmjax.config.removed import REMOVED, removed_sentence
from slmjax.config.saved import from_dict
from slmjax.config.trust import check_trust
from slmjax.errors import UserError, line_of_the_user, nearest

# Errors whose text says enough without the name of their class.
SELF_EXPLANATORY = (
    UserError,
    AttributeError,
    ImportError,
    KeyError,
    SyntaxError,
    TypeError,
    ValueError,
)
# The errors of ml_collections on a value of another type, and on an unknown field.
WRONG_TYPE = re.compile(
    r"Could not override field '(\w+)' \(reference\)\. "
    r"(.*) is of original type <class '(.*)'>.*<class '(.*)'>"
)
UNKNOWN_FIELD = re.compile(r'Key "(\w+)" does not exist')


def load_recipe(path: str, trust: Sequence[str] = (), init_from: str = "") -> ConfigDict:
    """Return the config of a recipe's get_config(), or of a work directory's config.json.

    A get_config with a parameter `parent` gets `parent_config(init_from)`, one with a parameter
    `trunk` `trunk_config(init_from)`.

    Args:
      path: a file; `path:argument` passes an argument to get_config().
      trust: names of code that a config.json may name, see check_trust.
      init_from: the work directory of the run that this one goes on from, "" for none.
    Raises: UserError where the file is missing, fails, or has no get_config, where a config.json
      names code that is not trusted, and where the recipe needs a parent and there is none.
    """
    path, _, argument = path.partition(":")
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        recipes = map(str, file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"--config: no file '{path}'.{nearest(path, recipes)}")
    try:
        if file.suffix == ".json":
            config = _read_saved(file)
            check_trust(config, trust, path)
            return config
        config = _run_recipe(file, argument, trust, init_from)
    except UserError:
        # Its text is written for the user already.
        raise
    except Exception as error:  # of the user's own file, or of a module that it imports
        raise UserError(_failure(error, path, file)) from error
    _check_returned(config, path)
    return config


def _read_saved(file: Path) -> ConfigDict:
    """Return the config of a config.json."""
    values = json.loads(file.read_text("utf-8"))
    try:
        config = from_dict(values)
    except UserError as error:
        raise UserError(f"--config: '{file}': {error}") from error
    for group in GROUPS:
        # Groups of other stages are not saved.
        if group not in values and group not in STAGE_OF:
            raise UserError(f"--config: '{file}' is no config of a run; it has no '{group}'.")
    return config


def parent_folders(init_from: str) -> list[str]:
    """Return the folders that --init_from names, with commas between them; [] for ""."""
    # A folder's own name may have a comma.
    if "," not in init_from or epath.Path(init_from).exists():
        return [init_from] if init_from else []
    return [folder.strip() for folder in init_from.split(",")]


def parent_config(init_from: str, trust: Sequence[str] = ()) -> ConfigDict:
    """Return the base config with the model and data.seq_len of a run, see `trunk_config`."""
    saved = trunk_config(init_from, trust)
    config = base()
    config.model.update(saved.model)
    config.data.seq_len = saved.data.seq_len
    return config


def trunk_config(init_from: str, trust: Sequence[str] = ()) -> ConfigDict:
    """Return the config of a run.

    Args:
      init_from: work directory of the run, or its export; the first of several counts.
      trust: names of code that its config may name, see check_trust.
    Raises: UserError where there is no such folder, its config.json cannot be read, or it names
      code that is not trusted.
    """
    init_from = parent_folders(init_from)[0]
    folder = epath.Path(init_from)
    if not folder.exists():
        raise UserError(f"--init_from: there is no work directory '{init_from}'.")
    place = folder / "config.json"
    try:
        saved = from_dict(json.loads(place.read_text()))
    except UserError as error:
        raise UserError(f"--init_from={init_from}: {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"--init_from={init_from}: its config.json cannot be read; expected the work "
            "directory of a training run."
        ) from error
    check_trust(saved, trust, str(place))
    return saved


def _run_recipe(file: Path, argument: str, trust: Sequence[str], init_from: str) -> Any:
    """Return what the recipe's get_config returns.

    Raises: UserError where it has none, or needs a parent and there is none.
    """
    # With a prefix: a recipe named like an installed module must not take its place.
    spec = importlib.util.spec_from_file_location(f"slmjax_recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: '{file}' is not a Python file with a get_config().")
    module = importlib.util.module_from_spec(spec)
    with _no_bytecode():
        try:
            spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise UserError(f"--config: '{file}' has no get_config().")
            parent_argument = {}
            parameters = inspect.signature(module.get_config).parameters
            for name, read in PARENT_READERS.items():
                if name not in parameters:
                    continue
                if not init_from:
                    raise UserError(
                        f"--config: '{file}' goes on from a trained run; "
                        "give its work directory as --init_from=WORKDIR."
                    )
                parent_argument[name] = read(init_from, trust)
            if argument:
                return module.get_config(argument, **parent_argument)
            return module.get_config(**parent_argument)
        except SystemExit as error:
            # As an ordinary error, whose traceback leads `_failure` to the recipe's line.
            failure = RuntimeError(f"the recipe ends the program (exit {error.code})")
            raise failure.with_traceback(error.__traceback__) from error


# Parameters of a get_config that goes on from a trained run, and what each gets.
PARENT_READERS = {"parent": parent_config, "trunk": trunk_config}


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Inside, Python writes no __pycache__ next to the recipe and the modules it imports."""
    kept = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = kept


def _check_returned(config: Any, path: str) -> None:
    """Raises: UserError where get_config() returned anything but a changed base config."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config() of '{path}' returned {type(config).__name__}; "
            "expected what slmjax.config.base() returns."
        )
    _check_names(config, f"--config: '{path}': ")
    # A config that was not made by base() lacks most groups.
    for name in base():
        if name not in config:
            raise UserError(
                f"--config: get_config() of '{path}' returned a config without '{name}'; "
                "start from slmjax.config.base()."
            )


def _check_names(values: ConfigDict, where: str, prefix: str = "") -> None:
    """Raises: UserError for a name in a config that is no field's, with the nearest field.

    Args:
      where: how the error begins.
      prefix: the group of `values` with a dot, such as "model."; empty for the whole config.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in GROUPS and isinstance(value, ConfigDict):
            _check_names(value, where, f"{name}.")
        elif name in REMOVED:
            raise UserError(f"{where}{removed_sentence(name)}")
        elif name not in FIELDS and name not in GROUPS:
            raise UserError(f"{where}there is no field config.{name}.{nearest(name, FIELDS)}")


def _failure(error: Exception, path: str, file: Path) -> str:
    """Return one sentence on a recipe that failed: where, and why."""
    failed_file, line = line_of_the_user(error) or (path, 0)
    where = [f"'{path}'"]
    if os.path.abspath(failed_file) != os.path.abspath(file):
        where.append(f"'{failed_file}'")  # a module that the recipe imports
    if line:
        where.append(f"line {line}")
    return f"--config: {', '.join(where)}: {_first_sentence(error)}"


def _first_sentence(error: Exception) -> str:
    """Return why a recipe failed, in one sentence.

    ml_collections lists all known fields after an unknown one; the list is left out.
    """
    lines = _message(error).strip().splitlines()
    if not lines:  # such as `raise RuntimeError`
        return f"{type(error).__name__}."
    sentence = _field_sentence(lines[0])
    if sentence:
        return sentence
    text = lines[0].partition(" Other fields present")[0].rstrip(".") + "."
    # The class is named once, also where the error's whole text is that name.
    if not isinstance(error, SELF_EXPLANATORY) and lines != [type(error).__name__]:
        text = f"{type(error).__name__}: {text}"
    if lines[-1].startswith("Did you mean"):
        text += f" {lines[-1]}"
    return text


def _message(error: Exception) -> str:
    """Return an error's text without quotation marks around it."""
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, UnicodeError):
        # Its first argument is only the name of the encoding.
        text = str(error)
    # ml_collections puts its texts in quotation marks.
    return str(literal(text))


def _field_sentence(line: str) -> str:
    """Return the sentence on a wrong type or a removed field; "" for any other error.

    Args:
      line: the first line of the error's text.
    """
    if wrong_type := WRONG_TYPE.match(line):
        name, value, actual, expected = wrong_type.groups()
        example = ", such as ('attention',)" if expected == "tuple" else ""
        return (
            f"the field '{name}' is set to {value} ({actual}); "
            f"expected a value of the type {expected.rpartition('.')[2]}{example}."
        )
    if unknown_field := UNKNOWN_FIELD.match(line):
        leaf = unknown_field[1]  # the error does not name the group
        for name in REMOVED:
            if name.endswith(f".{leaf}"):
                return removed_sentence(name)
    return ""
