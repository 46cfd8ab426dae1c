"""The options of commands that take a recipe, and the config that they make of it."""

import dataclasses
import re
from collections.abc import Container, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from slmjax import config as configs
from slmjax.errors import UserError, empty_value, nearest
from slmjax.text.remote import work_place
from slmjax.text.sources import parse_sources

# The options that are not fields; a field is given as --config.FIELD=VALUE.
FLAGS = (
    "config",
    "workdir",
    "init_from",
    "trust",
    "params",
    "coordinator",
    "processes",
    "process",
    "help",
)


def read_options(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return ({flag: value}, ["model.layers=12", ...]) of command-line words.

    A value may be given as --a=b or as --a b.

    Raises: UserError for an unknown flag or one without a value.
    """
    options, assignments = {}, []
    words = list(argv)
    while words:
        name, value = _next_option(words)
        if name.startswith("config."):
            assignments.append(f"{name.removeprefix('config.')}={value}")
            continue
        if name not in FLAGS:
            raise UserError(f"there is no option --{name}.{nearest(name, FLAGS)}")
        if not value.strip():
            raise empty_value(f"--{name}")
        if name == "trust" and name in options:  # may be given several times
            options[name] += f",{value}"
        else:
            options[name] = value
    if "config" not in options:
        raise UserError("--config is missing; for example --config=configs/tiny.py.")
    for name in ("processes", "process"):
        if name in options and not re.fullmatch(r"-?[0-9]+", options[name]):
            raise UserError(f"--{name}={options[name]}: expected a whole number.")
    return options, assignments


def make_config(options: dict[str, str], assignments: list[str]) -> configs.Config:
    """Return the checked config of a recipe, after the overrides and --params.

    Raises: UserError for a mistake in the recipe, an unknown stage, or a field that another stage
      reads.
    """
    recipe = configs.load_recipe(options["config"], trusted(options), parent(options))
    # --params needs the recipe's own values, which the overrides may change.
    as_written = recipe.copy_and_resolve_references()
    config = apply_overrides(recipe, assignments)
    if config.train.minutes:
        _let_minutes_choose(config, options.get("params", ""), assignments)
    elif "params" in options:
        _resize(config, as_written, options["params"], assignments)
    if config.stage not in configs.STAGES:
        stages = ", ".join(configs.STAGES)
        hint = nearest(config.stage, configs.STAGES)
        raise UserError(f"config.stage is '{config.stage}'; it can be {stages}.{hint}")
    # A recipe may set fields of other stages; on the command line it is a mistake.
    for name in map(_assigned_field, assignments):
        group = name.partition(".")[0]
        # A group that is not in STAGE_OF may be set for every stage.
        stage = configs.STAGE_OF.get(group, config.stage)
        if stage != config.stage:
            raise UserError(
                f"--config.{name}: only the stage {stage} reads it; this is {config.stage}."
            )
    return configs.freeze(config)


def apply_overrides(config: ConfigDict, assignments: Sequence[str]) -> ConfigDict:
    """Apply "a.b=value" assignments; data.sources has a short form, "name:weight=path,..."."""
    return configs.override(config, assignments, {"data.sources": _sources_of_text})


def trusted(options: dict[str, str]) -> tuple[str, ...]:
    """Return the names of --trust=NAME,NAME."""
    return tuple(filter(None, options.get("trust", "").split(",")))


def work_directory(options: dict[str, str]) -> str:
    """Return --workdir, or the work directory that is named after the recipe."""
    recipe = options["config"].partition(":")[0]
    return work_place(options.get("workdir") or f"runs/{Path(recipe).stem}", "--workdir")


def parent(options: dict[str, str]) -> str:
    """Return the work directory of --init_from, or several with commas; "" where none is given."""
    folders = configs.parent_folders(options.get("init_from", ""))
    return ",".join(work_place(folder, "--init_from") for folder in folders)


def _next_option(words: list[str]) -> tuple[str, str]:
    """Take the next option from the front of `words`. Returns: its name without --, its value."""
    word = words.pop(0)
    if not word.startswith("--"):
        # Perhaps only the dashes are missing.
        hint = nearest(f"--{word}", [f"--{flag}" for flag in FLAGS])
        raise UserError(f"'{word}' is not an option; options begin with --.{hint}")
    name, equals, value = word.removeprefix("--").partition("=")
    if equals:
        return name, value
    if not words:
        raise UserError(f"--{name} needs a value: --{name}=VALUE.")
    value = words.pop(0)
    if value.startswith("--"):
        raise UserError(
            f"--{name} needs a value, and '{value}' is the next option: --{name}=VALUE."
        )
    return name, value


def _resize(
    config: configs.ConfigDict, recipe: configs.ConfigDict, params: str, assignments: Sequence[str]
) -> None:
    """Give `config` the shape of --params, and the rates, scales and decay that follow from it.

    Args:
      recipe: the config before the command line's assignments. Its rate, decay and multipliers are
        those of the shape that it has.
    Raises: UserError for a number that makes no shape, and for an assignment of a field of the
      shape.
    """
    # Imported late, as only --params needs them.
    from slmjax.models.choose_shape import parse_params, reshape
    from slmjax.train.transfer import transfer, transfer_lines

    # After the overrides, since the shape depends on the pattern and the vocabulary.
    before = configs.freeze(config)
    decided = reshape(parse_params(params), before.model, config.data.vocab_size)
    _check_set_once(params, decided, assignments)
    config.model.update(decided)
    target = configs.freeze(config).model

    # The base has the recipe's values where the command line gives others.
    own_multipliers = recipe.model.multipliers.to_dict()
    base = dataclasses.replace(before.model, multipliers=own_multipliers)
    own_rates = {"lr": float(recipe.train.lr), "decay_lr": float(recipe.train.decay_lr)}
    base_train = dataclasses.replace(before.train, **own_rates)
    fields = transfer(base, target, base_train)
    config.model.multipliers = configs.ConfigDict(fields["model.multipliers"])
    config.train.decay_lr = fields["train.decay_lr"]
    # What the command line sets wins over the rule.
    given = [text for text in assignments if text.startswith(tuple(fields))]
    apply_overrides(config, given)
    final = configs.freeze(config)
    names = [_assigned_field(text) for text in given]
    config.model.transfer = transfer_lines(base, final.model, final.train, names)


def _let_minutes_choose(
    config: configs.ConfigDict, params: str, assignments: Sequence[str]
) -> None:
    """Leave the shape to config.train.minutes, which needs the devices; --params sets the size.

    Raises: UserError for an assignment of a field of the shape, and for --params where the size
      has been chosen already.
    """
    from slmjax.models.choose_shape import SHAPE

    if config.train.chosen:
        if params:
            raise UserError(
                f"--params={params}: the config has a size that config.train.minutes has chosen."
            )
        return
    for name in map(_assigned_field, assignments):
        if name.removeprefix("model.") in SHAPE:
            raise UserError(
                f"--config.{name}: config.train.minutes chooses the shape; set the size by "
                "--params=SIZE, such as --params=1m."
            )
    config.train.size = params


def _check_set_once(params: str, decided: Container[str], assignments: Sequence[str]) -> None:
    """Raises: UserError where an assignment sets a field that --params decides.

    Args:
      decided: the model's fields that --params has set.
    """
    for name in map(_assigned_field, assignments):
        if name.removeprefix("model.") in decided:
            raise UserError(
                f"--params={params} decides config.{name}, which is given too; "
                "leave one of the two out."
            )


def _assigned_field(assignment: str) -> str:
    return assignment.partition("=")[0]


def _sources_of_text(text: str) -> dict[str, dict]:
    """Return data.sources, {name: fields}, from its short form or a literal."""
    sources = {}
    for source in parse_sources(configs.quoted_literal(text)):
        fields = dataclasses.asdict(source)
        # Written as users write it: a share is given in the same field as files.
        share = fields.pop("heldout_share")
        if share is not None:
            fields["heldout"] = share
        sources[fields.pop("name")] = fields
    return sources
