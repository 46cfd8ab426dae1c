"""What a token mixer costs at equal parameters: memory and speed, by context length.

python -m slmjax.bench memory --config=configs/304m.py --lengths=1024,4096,16384,65536 \\
    --figure=memory.svg

Each variant is the config's model with other mixers, in a multiple of four layers. Its feed-forward
width is chosen so that all variants have as many parameters. A training batch has as many rows as
--tokens holds, at least one. All activations are kept where they fit; otherwise each block is
rematerialised. `train GiB` is the memory of the compiled train step, with its arguments; `state MB`
is the cache of one row whose prompt fills the context.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from slmjax.bench import decode, shell
from slmjax.bench.memory_figure import draw
from slmjax.bench.recurrence_speed import KINDS
from slmjax.bench.train import measure as measure_train
from slmjax.config import Config, ModelConfig
from slmjax.errors import UserError, nearest
from slmjax.infer.engine import Engine, bucket
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import from_config
from slmjax.models.resolve import resolve
from slmjax.parallel.compiling import use_compile_cache
from slmjax.parallel.mesh import make_mesh

VARIANTS = {
    "mha": "attention, as many key/value as query heads",
    "gqa": "attention, the config's key/value heads",
    "mqa": "attention, one key/value head",
    "shared": "gqa, two layers to one set of keys and values",
    "ssm": "Mamba-2",
    "gla": "gated linear attention",
    "gdn": "gated DeltaNet",
    "kda": "Kimi delta attention",
    **{f"{kind}-hybrid": f"three {kind} to one attention (gqa)" for kind in KINDS},
}
# The default of --variants. One hybrid shows what mixing does, and each variant compiles slowly.
USUAL = ("mha", "gqa", "mqa", "shared", *KINDS, "gdn-hybrid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench memory`."""
    add = parser.add_argument
    add("--variants", default=",".join(USUAL), help="comma-separated (default: %(default)s)")
    add(
        "--lengths",
        type=shell.numbers(32),
        default="4096",
        help="contexts, comma-separated (default: %(default)s)",
    )
    add(
        "--tokens",
        type=int,
        default=32_768,
        help="tokens of a training batch (default: %(default)s)",
    )
    add("--steps", type=int, default=16, help="measured train steps")
    add(
        "--drawn",
        type=int,
        default=32,
        help="tokens drawn when decoding; the rest of the context is prompt (default: %(default)s)",
    )
    add(
        "--measure",
        choices=("train", "decode", "both"),
        default="both",
        help="what to measure (default: %(default)s)",
    )
    add("--rows", type=int, default=1, help="rows decoded at once (default: %(default)s)")
    add("--figure", default="", help="draw memory and state into this SVG file")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each variant at each length.

    Returns: {"rows": [...], ...}; a row has variant, context, parameters, and the columns of
      measure_training and measure_decoding.
    Raises: UserError for an unknown variant, a context without room for what is drawn, and mixers
      that leave no parameters to the feed-forward layers.
    """
    names = arguments.variants.split(",")
    # Before anything is compiled, so that every mistake shows at once.
    _check_arguments(names, arguments)
    models = {name: variant(arguments.config, name).model for name in names}
    use_compile_cache()
    # One device: mixers are compared, not shardings.
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    rows, messages = [], []
    for length in arguments.lengths:
        for name in names:
            row, row_messages = _measure_model(models[name], length, mesh, arguments)
            row = {"variant": name, "context": length, **row}
            rows.append(row)
            shell.print_row(row)
            messages += [f"{name}, {length}: {message}" for message in row_messages]
    if arguments.figure:
        architectures = {name: _resolved(models[name], mesh, arguments) for name in names}
        Path(arguments.figure).write_text(draw(rows, architectures))
    return {
        "bench": "memory",
        "rows": rows,
        "variants": {name: VARIANTS[name] for name in names},
        "messages": messages,
    }


def _check_arguments(names: list[str], arguments: argparse.Namespace) -> None:
    for name in names:
        if name not in VARIANTS:
            near = nearest(name, VARIANTS)
            raise UserError(f"--variants: '{name}' is not among {', '.join(VARIANTS)}.{near}")
    shortest = min(arguments.lengths)
    if shortest <= bucket(arguments.drawn):
        raise UserError(
            f"--lengths: a context of {shortest} tokens has no room for a prompt and"
            f" --drawn={arguments.drawn}, for which {bucket(arguments.drawn)} are kept."
        )


def _measure_model(
    model: ModelConfig, length: int, mesh: Mesh, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """Measure the recipe with a variant's model at one context length.

    Returns: (parameters and the columns of what is measured, messages).
    """
    recipe = arguments.config
    data = dataclasses.replace(recipe.data, seq_len=length)
    train = dataclasses.replace(recipe.train, batch=max(1, arguments.tokens // length))
    config = dataclasses.replace(recipe, model=model, data=data, train=train)
    counted = _architecture_to_count(model, data.vocab_size)
    row: dict[str, Any] = {"parameters": sizes.parameters(counted).total}
    messages = []
    if arguments.measure != "decode":
        columns, training_messages = measure_training(config, mesh, arguments.steps)
        row |= columns
        messages += training_messages
    if arguments.measure != "train":
        arch = _resolved(model, mesh, arguments)
        columns, decoding_messages = measure_decoding(
            arch, config.seed, length, arguments.drawn, arguments.rows
        )
        row |= columns
        messages += decoding_messages
    return row, messages


def _resolved(model: ModelConfig, mesh: Mesh, arguments: argparse.Namespace) -> Architecture:
    """Return a model's architecture with the kernels and types that it gets on this device."""
    recipe = arguments.config
    vocab_size = recipe.data.vocab_size
    deterministic = recipe.train.deterministic
    arch, _ = resolve(model, recipe.precision, mesh, vocab_size, deterministic)
    return arch


def variant(config: Config, name: str) -> Config:
    """Return the config with this variant's model, see variant_model."""
    model = variant_model(config.model, config.data.vocab_size, name)
    return dataclasses.replace(config, model=model)


def variant_model(model: ModelConfig, vocab_size: int, name: str) -> ModelConfig:
    """Return the model with a variant's mixers and about as many parameters as before.

    The feed-forward width, a multiple of 8, makes up for larger or smaller mixers.

    Raises: UserError where the mixers alone have more parameters.
    """
    kind, _, hybrid = name.partition("-")  # "gdn-hybrid": ("gdn", "-", "hybrid")
    block = _recurrent_block(kind, model.width) if kind in KINDS else "attention"
    # Published hybrids have three recurrent layers to one of attention (Kimi Linear, Qwen3-Next).
    pattern = (block, block, block, "attention") if hybrid else (block,)
    kv_heads = {"mha": model.heads, "mqa": 1}
    mixed = dataclasses.replace(
        model,
        pattern=pattern,
        kv_heads=kv_heads.get(name, model.kv_heads),
        # A multiple of four, the length of a hybrid's pattern.
        layers=max(4, 4 * round(model.layers / 4)),
        share_kv=2 if name == "shared" else 1,
    )
    # All parameters count, those of embedding and norms too.
    budget = sizes.parameters(_architecture_to_count(model, vocab_size)).total
    ff_width = sizes.ff_width_for(_architecture_to_count(mixed, vocab_size), budget)
    return dataclasses.replace(mixed, ff_width=ff_width)


def measure_training(config: Config, mesh: Mesh, steps: int) -> tuple[dict[str, Any], list[str]]:
    """Measure training with config.model.remat; if that does not fit, with remat="full".

    Returns: (the columns, empty if neither fits; a message about each remat that does not fit).
    Raises: any error of the device but that of too little memory.
    """
    messages = []
    for remat in dict.fromkeys((config.model.remat, "full")):  # a dict: the same remat counts once
        model = dataclasses.replace(config.model, remat=remat)
        try:
            with jax.set_mesh(mesh):
                row, _ = measure_train(dataclasses.replace(config, model=model), mesh, steps)
        except jax.errors.JaxRuntimeError as error:
            # The compiler refuses a program that needs too much memory, or the program fails.
            reason = _out_of_memory(error)
            messages.append(f"training with remat={remat} does not fit: {reason}")
            continue
        columns = {
            "remat": remat,
            "train GiB": row["peak_gib"],
            "train tokens/s": row["tokens_per_second"],
        }
        return columns, messages
    # Empty cells, so that every row has the same columns.
    return {"remat": "", "train GiB": None, "train tokens/s": None}, messages


def measure_decoding(
    arch: Architecture, seed: int, length: int, drawn: int, rows: int
) -> tuple[dict[str, Any], list[str]]:
    """Measure decoding with random weights.

    Args:
      length: tokens of the context, which holds the prompt and a bucket for the drawn tokens.
      drawn: tokens drawn in each row.
      rows: decoded at once.
    Returns: (the columns, empty if it does not fit; a message if it does not fit).
    Raises: any error of the device but that of too little memory.
    """
    params = jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(seed))
    engine = Engine(arch, params, {}, decode.BareIds(arch))
    # The engine keeps a whole bucket free for the drawn tokens.
    prompt = length - bucket(drawn)
    empty_columns = {"state MB": None, "decode tokens/s": None}
    try:
        row = decode.measure(engine, rows, prompt, drawn, runs=2)
    except UserError as error:  # the engine foresees that its cache does not fit
        return empty_columns, [f"decoding does not fit: {error}"]
    except jax.errors.JaxRuntimeError as error:
        return empty_columns, [f"decoding does not fit: {_out_of_memory(error)}"]
    return {"state MB": row["state MB"], "decode tokens/s": row["tokens/s"]}, []


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> str:
    """Return the first line of an out-of-memory error; raise any other error again."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        raise error
    return message.splitlines()[0][:120]


def _architecture_to_count(model: ModelConfig, vocab_size: int) -> Architecture:
    """Return an architecture for counting parameters, whose number no device changes."""
    return from_config(model, model.vocab_size or vocab_size, compute="bfloat16")


def _recurrent_block(kind: str, width: int) -> str:
    """Return a recurrent block with heads of the published size, as many as fill `width`."""
    published = KINDS[kind]
    value_dim = min(published.value_dim, width)
    key_dim = min(published.key_dim, width)
    heads = width // value_dim
    if kind == "ssm":
        heads = 2 * width // value_dim  # Mamba-2 expands the model's width by two
    return f"{kind} heads={heads} key_dim={key_dim} value_dim={value_dim}"
