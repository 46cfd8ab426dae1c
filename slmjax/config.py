"""The base config: every field with its default, meaning and unit; recipes, command-line overrides and validation.

A recipe (`configs/*.py`) starts from `base()`, sets what differs and returns the ConfigDict from `get_config()`.
"""

import ast
import dataclasses
import importlib.util
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from slmjax.errors import UserError, line_of_the_user, nearest

# (default, meaning). A default's type is the field's type; None would have none, so there is none.
FIELDS = {
    "stage": (
        "train",
        "what to do: train, prepare (tokenize only), synthesize, curate or recall; the last three have recipes of their own",
    ),
    "seed": (0, "of the initial parameters, the data order and sampling"),
    "study": (ConfigDict(), "what a study compares and how; its recipe has every setting"),
    "synthesize": (ConfigDict(), "teacher, topics, formats and budget of a textbook; configs/textbook.py has every setting"),
    "curate": (ConfigDict(), "rules, evaluation sets and deduplication of raw text; configs/curate.py has every setting"),
    "model": {
        "vocab_size": (0, "rows of the embedding; 0 takes the tokenizer's size, rounded up to a multiple of 128"),
        "width": (256, "model width D"),
        "layers": (8, "blocks in the stack"),
        "heads": (4, "query heads N"),
        "kv_heads": (2, "key/value heads K; divides heads"),
        "head_dim": (64, "head size H"),
        "ff_width": (704, "feed-forward width F"),
        "pattern": (
            ("attention",),
            'blocks that repeat: "mixer[+channel] [option=value ...]", e.g. "gdn,gdn,gdn,attention rope=False"; mixers: attention (rope, '
            "window, borrows), ssm, gla, gdn, kda (heads, key_dim, value_dim); channels: mlp, none; or module:Class; "
            'blocks before a bar, and after a second one, come once: "attention,|,gdn,gdn,attention,|,attention"',
        ),
        "share_kv": (1, "attention layers in a row that share one layer's keys and values"),
        "share_blocks": (1, "times in a row that each block is applied, with the same weights"),
        "rope_theta": (10000.0, "base of the rotary position embedding"),
        "qk_norm": (False, "RMSNorm on queries and keys, per head"),
        "output_gate": (False, "sigmoid gate on attention's output"),
        "tied": (True, "the head is the embedding, transposed"),
        "norm_eps": (1e-6, "added to the mean square in RMSNorm"),
        "multipliers": (ConfigDict(), "{group: {init, lr, decay}} for embedding, head, matrix, vector, own; 1 where not named"),
        "attention": ("auto", "kernel: auto, reference, blockwise, cudnn, splash"),
        "unroll": ("auto", "auto, True (a list of layers: fastest on one host's GPUs) or False (a scan: compiles fastest)"),
        "remat": ("none", "none, full, dots, or comma-separated names of activations to keep"),
    },
    "precision": {
        "params": ("float32", "master weights"),
        "optimizer": ("float32", "first moments of the optimizer"),
        "compute": ("auto", "matrix products: auto is bfloat16 where the device has it, float16 on older GPUs (V100, T4), else float32"),
        "reductions": ("float32", "norms, softmax, logsumexp"),
        "products": ("compute", "training's products in projections and MLP: compute, or float8 (GPUs of capability 8.9 or newer)"),
    },
    "data": {
        "sources": (
            ConfigDict(),
            "{name: {path, weight, field, revision, heldout, max_epochs (read at most so often), score (a field; documents "
            "in its order, '-field' from high to low)}} or 'name:weight=path,...'; empty: embedded textbook",
        ),
        "tokenizer": ("", "an existing tokenizer.json; empty: train a byte-level BPE on the text"),
        "vocab_size": (1024, "size of the tokenizer that is trained"),
        "seq_len": (128, "tokens in a row, T"),
        "packing": ("best_fit", "best_fit keeps documents whole where it can; concat cuts them at row edges"),
        "group_by": ("", "field, or regular expression on the id: a group is either held out or trained on, never both"),
        "heldout": (0.01, "share of each source's text held out, at most 10 MB each"),
        "max_bad_share": (0.001, "share of malformed or empty records that is skipped before it is an error"),
        "phases": (
            (),
            "[{'until': 0.8, 'weights': {source: weight}}, {'until': 1.0, 'weights': ..., 'ramp': 0.05}]: until and ramp are "
            "shares of the run, over ramp the weights change in a line; empty: the sources' weights",
        ),
        "workers": (0, "processes that assemble batches; 0: threads of this one"),
        "cache": ("", "folder of prepared text; empty: 'prepared' beside the work directory"),
    },
    "train": {
        "steps": (1000, "optimizer steps"),
        "batch": (64, "rows in a step, over all devices"),
        "microbatches": (1, "parts of a batch, one after the other (gradient accumulation)"),
        "optimizer": ("adamw", "adamw, or muon (matrices by Muon, the rest by AdamW)"),
        "lr": (3e-3, "peak learning rate; Muon's updates are scaled to AdamW's size, so that it serves both"),
        "trainable": ((), "groups (embedding, head, matrix, vector, own) or path patterns that are trained, e.g. 'stack/*'; empty: all"),
        "weight_decay": (0.1, "decoupled, on matrices"),
        "b1": (0.9, "decay of the first moment"),
        "b2": (0.95, "decay of the second moment"),
        "eps": (1e-8, "added to the root of the second moment"),
        "clip": (1.0, "largest global gradient norm; 0: none"),
        "schedule": ("wsd", "wsd (warmup, stable, decay) or cosine"),
        "warmup": (100, "steps of linear warmup"),
        "decay": (0.2, "share of the run that decays (wsd)"),
        "decay_shape": ("1-sqrt", "1-sqrt or linear (wsd)"),
        "z_loss": (0.0, "coefficient of logsumexp squared"),
        "loss_chunks": (0, "pieces of a row whose logits exist at once; 0: from the device's memory"),
        "spike_sigma": (6.0, "skip a step whose loss or gradient norm is this many deviations above its running mean; 0: never"),
        "max_skips": (20, "skipped steps in a row that end the run"),
        "deterministic": (False, "bit-equal resume on GPU too, at some cost (CPU and TPU always are)"),
    },
    "eval": {
        "every": (200, "steps between evaluations; 0: only at the end"),
        "tokens": (200_000, "held-out tokens of each source in an evaluation"),
        "samples": (4, "completions shown after an evaluation; 0: none"),
        "prompts": ((), "their prompts; empty: beginnings of held-out documents"),
        "sample_tokens": (64, "length of a completion"),
        "textbook": (False, "at the end ask the embedded textbook's held-out questions, whatever the text is"),
    },
    "checkpoint": {
        "every": (500, "steps between checkpoints"),
        "keep": (3, "newest checkpoints to keep; the start of the decay is kept beside them"),
    },
    "log": {
        "every": (10, "steps between lines of metrics"),
        "tensorboard": (False, "write TensorBoard files too"),
        "wandb": ("", "Weights & Biases project; empty: off"),
        "profile": ("", "steps to profile, 'first:last'; empty: none"),
    },
    "mesh": {
        "data": (-1, "devices that split the batch; -1: all that are left"),
        "fsdp": (1, "devices that split the batch and hold a share of parameters and optimizer state"),
        "tensor": (1, "devices that split heads, feed-forward and vocabulary"),
        "sequence": (1, "reserved"),
        "expert": (1, "reserved"),
    },
}

CHOICES = {
    "model.attention": ("auto", "reference", "blockwise", "cudnn", "splash"),
    "model.unroll": ("auto", "True", "False"),
    "precision.params": ("float32", "bfloat16"),
    "precision.optimizer": ("float32", "bfloat16"),
    "precision.compute": ("auto", "float32", "bfloat16", "float16"),
    "precision.reductions": ("float32", "bfloat16"),
    "precision.products": ("compute", "float8"),
    "data.packing": ("best_fit", "concat"),
    "train.optimizer": ("adamw", "muon"),
    "train.schedule": ("wsd", "cosine"),
    "train.decay_shape": ("1-sqrt", "linear"),
}
TEXTS = ("eval.prompts",)  # lists of texts: on the command line one text, commas and all, or a list in brackets
FREE = ("data.sources", "model.multipliers", "study", "synthesize", "curate")  # groups whose keys are the user's or a recipe's own
POSITIVE = ("model.width", "model.layers", "model.heads", "model.kv_heads", "model.head_dim", "model.ff_width", "model.rope_theta",
            "data.vocab_size", "data.seq_len", "train.steps", "train.batch", "train.microbatches", "train.lr", "checkpoint.every",
            "checkpoint.keep", "log.every", "eval.tokens", "train.max_skips", "model.share_kv", "model.share_blocks")  # fmt: skip
NOT_NEGATIVE = ("model.vocab_size", "model.norm_eps", "data.workers", "train.warmup", "train.weight_decay", "train.eps", "train.clip",
                "train.z_loss", "train.loss_chunks", "train.spike_sigma", "eval.every", "eval.samples", "eval.sample_tokens")  # fmt: skip
LARGEST = 2**31 - 1  # whole numbers are 32-bit in arrays of steps, rows and tokens
SHARES = ("data.heldout", "data.max_bad_share", "train.decay", "train.b1", "train.b2")


def base() -> ConfigDict:
    """Every field at its default."""

    def build(fields: dict) -> ConfigDict:
        out = ConfigDict()
        for name, entry in fields.items():
            value = build(entry) if isinstance(entry, dict) else entry[0]
            out[name] = ConfigDict(value) if isinstance(value, ConfigDict) else value
        return out

    config = build(FIELDS).lock()
    for name in FREE:
        get(config, name).unlock()
    return config


def load(path: str, trust: Sequence[str] = ()) -> ConfigDict:
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
        raise UserError(f"--config: '{path}'{', ' if where else ''}{where}: {_first_sentence(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config() of '{path}' returned {type(config).__name__}; expected what slmjax.config.base() returns.")
    _check_names(config, f"--config: '{path}': ")
    if missing := [name for name in base() if name not in config]:
        raise UserError(f"--config: get_config() of '{path}' returned a config without '{missing[0]}'; start from slmjax.config.base().")
    return config


def _saved(file: Path) -> ConfigDict:
    """The config of a config.json; a name that it does not know is a mistake of whoever changed the file."""
    values = json.loads(file.read_text("utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no object; expected the fields of a config.json")
    config = from_dict(values)
    _check_names(values, f"--config: '{file}': ")
    missing = [name for name, entry in FIELDS.items() if isinstance(entry, dict) and name not in values]
    if missing:
        raise UserError(f"--config: '{file}' is no config of a run; it has no '{missing[0]}'.")
    return config


def _check_names(values: Any, where: str) -> None:
    """Raises: UserError for a name that is no field's, with the nearest one."""
    known = dict(fields(FIELDS))
    groups = {name.rpartition(".")[0] for name in known} - {""}

    def check(node: Any, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name not in known and name not in groups:
                raise UserError(f"{where}there is no field config.{name}.{nearest(name, known)}")
            if name in groups and hasattr(value, "items"):
                check(value, f"{name}.")

    check(values, "")


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
        raise RuntimeError(f"the recipe ends the program (exit {error.code})").with_traceback(error.__traceback__) from error
    finally:
        sys.dont_write_bytecode = kept


def check_trust(config: ConfigDict, trust: Sequence[str], place: str) -> None:
    """Refuse a config that came with somebody else's files and names code which the user does not trust.

    Nothing is imported to find out. Only a recipe or the command line of the user may name code.

    Args:
      trust: names as they stand in the config: "module:Class" of a mixer, "seqio://module/task" of a
        source, all of curate.beam.
      place: where the config was read from.
    Raises: UserError that says what would be imported, and from which file.
    """
    for name in named_code(config):
        if name not in trust:
            module = name.removeprefix("seqio://").partition("/")[0].partition(":")[0]
            what = f"importing the module {module} ({_file_of(module)})"
            if name == _beam(config):
                what = "Apache Beam, which imports and installs what its options name,"
            raise UserError(
                f"'{place}' names '{name}': {what} would run its code. If you know that code, allow it with --trust={shlex.quote(name)}."
            )


def named_code(config: ConfigDict) -> list[str]:
    """What in a config would import a module: mixers and channels "module:Class", SeqIO's tasks, and Beam's options."""
    blocks = [*_texts(config.model.pattern), *_texts(config.study.get("variants"))]
    mixers = [name for block in blocks for name in (block.split() or [""])[0].split("+")]
    found = [mixer for mixer in mixers if ":" in mixer]
    for text in _texts(config):
        found += [part for part in re.split(r"[,=]", text) if part.startswith("seqio://")]
    beam = _beam(config)
    found += [] if re.fullmatch(r"(--runner=\w+)?", beam) else [beam]
    return list(dict.fromkeys(found))


def _beam(config: ConfigDict) -> str:
    return str(config.curate.get("beam", ""))


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, ConfigDict | dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _file_of(module: str) -> str:
    """Where the first package of a module's name would be imported from, found without importing it."""
    package = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return "not found here"
    return spec.origin or ", ".join(spec.submodule_search_locations or ["built in"])


def override(config: ConfigDict, assignments: Sequence[str]) -> ConfigDict:
    """`config` with "a.b=value" assignments; values are read as Python literals of the field's type.

    Raises: UserError for an unknown field (with the nearest name) or a value of another type.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--config.{name}: write --config.{name}=VALUE.")
        *groups, leaf = name.split(".")
        known = dict(fields(FIELDS))
        node = config
        for group in groups:
            if not isinstance(node, ConfigDict) or group not in node:
                raise UserError(f"--config.{name}: there is no such field.{nearest(name, known)}")
            node = node[group]
        free = name.startswith(tuple(f"{group}." for group in FREE))
        if not isinstance(node, ConfigDict) or (leaf not in node and not free):
            raise UserError(f"--config.{name}: there is no such field.{nearest(name, known)}")
        if not text.strip():
            _check_empty(name, node.get(leaf))
        if name in ("data.sources", "model.multipliers"):
            node[leaf] = _parsed_mapping(name, text)
        elif name in FIELDS and isinstance(FIELDS[name], dict):
            raise UserError(f"--config.{name} is a group of fields; set one of {', '.join(FIELDS[name])}.")
        else:
            with node.unlocked(), node.ignore_type():
                if name.startswith("data.sources."):
                    node[leaf] = _of_source(leaf, text)
                else:
                    node[leaf] = _literal(text) if free else _typed(name, text, known[name][0])
    return config


def _check_empty(name: str, current) -> None:
    """An empty value may take away what a recipe says; else it is a mistake, as of a shell variable that is not set."""
    groups = tuple(f"{group}." for group in FREE if group != "data.sources")
    own = name.startswith(groups) and name.count(".") > 1  # such as curate.rules.books
    if name == "data.sources" or not (current or own):
        raise UserError(f"--config.{name}= is empty; give it a value or leave it out (is a shell variable not set?).")


def _of_source(field: str, text: str):
    """A field of a source: names of files and fields may look like numbers."""
    return _literal(text) if field in ("weight", "max_epochs") or text[:1] in ("[", "(", "{", "'", '"') else text


def fields(tree: dict, prefix: str = "") -> Iterator[tuple[str, tuple]]:
    """("model.width", (default, meaning)) for each field of a FIELDS tree."""
    for name, entry in tree.items():
        if isinstance(entry, dict):
            yield from fields(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def get(config: ConfigDict, name: str):
    """The value of a dotted field name."""
    for part in name.split("."):
        config = config[part]
    return config


def validate(config: ConfigDict) -> ConfigDict:
    """`config`, or UserError naming the first field that makes no sense."""
    _check_types(config)
    for name, choices in CHOICES.items():
        value = str(get(config, name))
        if value not in choices:
            raise UserError(f"config.{name} is '{value}'; it can be {', '.join(choices)}.{nearest(value, choices)}")
    for name in POSITIVE:
        if not 0 < get(config, name) < math.inf:
            raise UserError(f"config.{name} is {get(config, name)}; it must be positive.")
    for name in NOT_NEGATIVE:
        if not 0 <= get(config, name) < math.inf:
            raise UserError(f"config.{name} is {get(config, name)}; it must not be negative.")
    for name in ("seed", *POSITIVE, *NOT_NEGATIVE):
        value = get(config, name)
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"config.{name} is {value}; its size can be {LARGEST:,} at most.")
    for name in SHARES:
        if not 0 <= get(config, name) < 1:
            raise UserError(f"config.{name} is {get(config, name)}; it must be at least 0 and less than 1.")
    m, t = config.model, config.train
    if m.heads % m.kv_heads:
        raise UserError(f"config.model.kv_heads is {m.kv_heads}; it must divide config.model.heads, {m.heads}.")
    if m.head_dim % 2:
        raise UserError(f"config.model.head_dim is {m.head_dim}; rotary embedding needs an even number.")
    if t.batch % t.microbatches:
        raise UserError(f"config.train.microbatches is {t.microbatches}; it must divide config.train.batch, {t.batch}.")
    if t.schedule == "wsd" and t.warmup + t.decay * t.steps > t.steps:
        most = int(t.steps * (1 - t.decay))
        raise UserError(
            f"config.train.warmup ({t.warmup} steps) and decay ({t.decay:g} of the run) exceed config.train.steps, {t.steps}; "
            f"for so short a run, --config.train.warmup={min(most, max(1, t.steps // 10))}."
        )
    if t.warmup > t.steps:  # under any other schedule
        raise UserError(
            f"config.train.warmup ({t.warmup}) exceeds config.train.steps ({t.steps}), so the "
            f"learning rate would never reach config.train.lr."
        )
    tokenizer = config.data.tokenizer
    if tokenizer and not tokenizer.startswith(("gs://", "hf://")) and not Path(tokenizer).expanduser().exists():
        raise UserError(f"config.data.tokenizer: there is no file '{tokenizer}'.")
    from slmjax.data.mixture import parse_phases

    parse_phases(config.data.phases)
    if config.log.profile:
        first, _, last = config.log.profile.partition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise UserError(f"config.log.profile is '{config.log.profile}'; expected first:last, two steps, for example 20:25.")
    for axis in ("sequence", "expert"):
        if config.mesh[axis] != 1:
            raise UserError(f"config.mesh.{axis} is reserved and must be 1 in this version.")
    return config


def _check_types(config: ConfigDict) -> None:
    """Raises: UserError for a field whose value has not the type of its default; a recipe or config.json may have set any."""
    for name, (default, meaning) in fields(FIELDS):
        try:
            value = get(config, name)
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"config.{name} is missing; expected {meaning}.") from None
        if isinstance(default, ConfigDict):
            fits = isinstance(value, ConfigDict | dict) or (name == "data.sources" and isinstance(value, str | list | tuple))
        elif isinstance(default, bool) or isinstance(value, bool):
            fits = isinstance(value, bool) and (isinstance(default, bool) or str(value) in CHOICES.get(name, ()))
        elif isinstance(default, tuple):
            fits = isinstance(value, list | tuple)
        else:
            fits = isinstance(value, int | float if isinstance(default, float) else type(default))
        if not fits:
            like = default.to_dict() if isinstance(default, ConfigDict) else default
            raise UserError(f"config.{name} is {value!r}; expected a value like {like!r} ({type(like).__name__}).")
    for name in ("model.pattern", *TEXTS):
        for text in get(config, name):
            if not isinstance(text, str):
                raise UserError(f"config.{name} holds {text!r}; expected texts, such as ('attention', 'gdn').")
    if not config.model.pattern:
        raise UserError("config.model.pattern is empty; expected at least one block, for example attention.")
    chunks, length = config.train.loss_chunks, config.data.seq_len
    if chunks > 0 and length % chunks:
        raise UserError(f"config.train.loss_chunks is {chunks}; it must divide config.data.seq_len, {length}.")


def to_json(config: ConfigDict) -> str:
    """The config as JSON, stable in its order."""
    return json.dumps(to_dict(config), indent=1, sort_keys=True)


def to_dict(config: ConfigDict) -> dict:
    """Plain nested dict; tuples become lists, as JSON has them."""
    return json.loads(json.dumps(config.to_dict(), default=list))


def from_dict(values: dict) -> ConfigDict:
    """The config of a saved JSON dict; fields that this version does not know are left out, new ones keep their default."""
    config = base()

    def fill(node: ConfigDict, saved: dict) -> None:
        for name, value in saved.items():
            if name in {group.rpartition(".")[2] for group in FREE}:
                node[name] = ConfigDict(value)
            elif name in node and isinstance(node[name], ConfigDict):
                fill(node[name], value)
            elif name in node:
                node[name] = _tuples(value)

    fill(config, values)
    return config


def help_text() -> str:
    """Every field, its default and meaning."""
    rows = [f"  --config.{name}={default!r}\n        {meaning}" for name, (default, meaning) in
            ((n, (dict(d) if isinstance(d, ConfigDict) else d, m)) for n, (d, m) in fields(FIELDS))]  # fmt: skip
    return "\n".join(rows)


def _first_sentence(error: Exception) -> str:
    """What a recipe's error says; of ml_collections' unknown fields, without the listing of the known ones."""
    said = str(error) if isinstance(error, UnicodeError) else str(error.args[0]) if error.args else ""
    text = str(_literal(said))  # ml_collections quotes its own text once more
    told = text.strip().splitlines() or [type(error).__name__]
    if wrong := re.match(
        r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '(.*)'>.*<class '(.*)'>", told[0]
    ):
        name, value, kind, expected = wrong.groups()
        return f"the field '{name}' is set to {value} ({kind}); expected a value of the type {expected.rpartition('.')[2]}."
    hint = f" {told[-1]}" if told[-1].startswith("Did you mean") else ""
    known = (UserError, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError)
    kind = "" if isinstance(error, known) or told == [type(error).__name__] else f"{type(error).__name__}: "
    return kind + told[0].partition(" Other fields present")[0].rstrip(".") + "." + hint


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _typed(name: str, text: str, default):
    value = _literal(text)
    if isinstance(default, str):
        return text
    if name in TEXTS and not (isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)):
        return (value if isinstance(value, str) else text,) if text.strip() else ()
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif isinstance(default, int) and isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    elif isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(default, tuple):
        if isinstance(value, str) and value[:1] not in ("[", "(", "{"):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, list | tuple):
            return tuple(value)
    raise UserError(f"--config.{name}={text}: expected a value like {default!r} ({type(default).__name__}).")


def _parsed_mapping(name: str, text: str):
    if name == "model.multipliers":
        value = _literal(text)
        if not isinstance(value, dict):
            raise UserError(f"--config.{name}={text}: expected {{'matrix': {{'lr': 0.5}}}}.")
        return ConfigDict(value)
    from slmjax.data.sources import parse_sources  # reads the short form "name:weight=path,..." too

    found = (dataclasses.asdict(source) for source in parse_sources(_of_source("path", text)))
    return ConfigDict({entry.pop("name"): entry for entry in found})
