"""Check, parse and quote the words of a command line."""

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from slmjax.errors import UserError, empty_value, nearest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UserErrors, with the nearest option.

    Args:
      may_be_empty: options whose value may be an empty text.
      settings: other arguments of argparse.ArgumentParser.
    """

    def __init__(self, *, may_be_empty: Sequence[str] = (), **settings: Any):
        # Without abbreviations, so that a new option never changes what an old command means.
        super().__init__(allow_abbrev=False, **settings)
        self.may_be_empty = may_be_empty

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Return the options. Raises: UserError for an unknown option or an empty value."""
        if args is None:
            args = sys.argv[1:]
        self._check_empty(list(args))
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            known = list(self._option_string_actions)
            raise UserError(f"{name}: there is no such option.{nearest(name, known)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a UserError."""
        raise UserError(f"{message}; {self.prog} --help lists the options.")

    def _check_empty(self, words: list[str]) -> None:
        """Raises: UserError for an option whose value is empty, as --a= or as --a ''."""
        # `following` is "--" after the last word: not empty, so that argparse reports the missing
        # value.
        for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
            name, equals, value = word.partition("=")
            if not equals:
                value = following
            is_option = name in self._option_string_actions
            if is_option and not value.strip() and name not in self.may_be_empty:
                raise empty_value(name)


def check_utf8(words: Sequence[str]) -> None:
    """Raises: UserError for a word of the command line that is not UTF-8."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            # Python keeps bytes that it cannot decode as surrogates.
            escaped = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise UserError(f"the argument '{escaped}' is not UTF-8.") from None


def shell_command(words: Sequence[Any]) -> str:
    """Return a command that can be pasted into a shell, whatever its words hold."""
    return shlex.join(map(str, words))
