"""Parts that every command shares: how it runs and fails, how recipe and options are read."""

from slmjax.cli.arguments import Parser, check_utf8, shell_command
from slmjax.cli.recipe_options import (
    FLAGS,
    apply_overrides,
    make_config,
    parent,
    read_options,
    trusted,
    work_directory,
)
from slmjax.cli.running import entry, explain, script

__all__ = [
    "FLAGS",
    "Parser",
    "apply_overrides",
    "check_utf8",
    "entry",
    "explain",
    "make_config",
    "parent",
    "read_options",
    "script",
    "shell_command",
    "trusted",
    "work_directory",
]
