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
      measure_training and generate.
    Raises: UserError for an unknown variant, a context without room for what is drawn, and mixers
      that leave no parameters to the feed-forward layers.
    """
    # Before anything is compiled: every mistake ends at once.
    names = arguments.variants.split(",")
    _check(names, arguments)
    use_compile_cache()
    recipe = arguments.config
    configs = {name: variant(recipe, name) for name in names}
    # One device: mixers are compared, not shardings.
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])

    def resolved(model: ModelConfig) -> Architecture:
        vocab_size = recipe.data.vocab_size
        deterministic = recipe.train.deterministic
        arch, _ = resolve(model, recipe.precision, mesh, vocab_size, deterministic)
        return arch

    rows, messages = [], []
    for length in arguments.lengths:
        data = dataclasses.replace(recipe.data, seq_len=length)
        train = dataclasses.replace(recipe.train, batch=max(1, arguments.tokens // length))
        for name in names:
            config = dataclasses.replace(configs[name], data=data, train=train)
            counted = _architecture(config.model, data.vocab_size)
            row = {
                "variant": name,
                "context": length,
                "parameters": sizes.parameters(counted).total,
            }
            parts = []
            if arguments.measure != "decode":
                parts.append(measure_training(config, mesh, arguments.steps))
            if arguments.measure != "train":
                arch = resolved(config.model)
                parts.append(generate(arch, config.seed, length, arguments.drawn, arguments.rows))
            for columns, part_messages in parts:
                row |= columns
                messages += [f"{name}, {length}: {message}" for message in part_messages]
            rows.append(row)
            shell.print_row(row)
    if arguments.figure:
        architectures = {name: resolved(configs[name].model) for name in names}
        Path(arguments.figure).write_text(draw(rows, architectures))
    return {
        "bench": "memory",
        "rows": rows,
        "variants": {name: VARIANTS[name] for name in names},
        "messages": messages,
    }


def _check(names: list[str], arguments: argparse.Namespace) -> None:
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


def variant(config: Config, name: str) -> Config:
    """Return the config with this variant's model, see variant_model."""
    model = variant_model(config.model, config.data.vocab_size, name)
    return dataclasses.replace(config, model=model)


def variant_model(model: ModelConfig, vocab_size: int, name: str) -> ModelConfig:
    """Return the model with a variant's mixers and as many parameters as before.

    The feed-forward width, a multiple of 8, makes up for the mixers.

    Raises: UserError where the mixers alone have more parameters.
    """
    kind, _, hybrid = name.partition("-")
    block = _recurrent_block(kind, model.width) if kind in KINDS else "attention"
    # Published hybrids have three recurrent layers to one of attention (Kimi Linear, Qwen3-Next).
    pattern = (block, block, block, "attention") if hybrid else (block,)
    kv_heads = {"mha": model.heads, "mqa": 1}
    mixed = dataclasses.replace(
        model,
        pattern=pattern,
        kv_heads=kv_heads.get(name, model.kv_heads),
        # Multiples of four, so that the pattern of a hybrid divides them.
        layers=max(4, 4 * round(model.layers / 4)),
        share_kv=2 if name == "shared" else 1,
    )
    # All parameters count, those of embedding and norms too.
    budget = sizes.parameters(_architecture(model, vocab_size)).total
    width = sizes.ff_width_for(_architecture(mixed, vocab_size), budget)
    return dataclasses.replace(mixed, ff_width=width)


def measure_training(config: Config, mesh: Mesh, steps: int) -> tuple[dict[str, Any], list[str]]:
    """Measure training, first as config.model.remat says, then with each block rematerialised.

    Returns: (columns of the first that fits, messages about those that do not).
    """
    messages = []
    for remat in dict.fromkeys((config.model.remat, "full")):  # once where they are the same
        model = dataclasses.replace(config.model, remat=remat)
        try:
            with jax.set_mesh(mesh):
                row, _ = measure_train(dataclasses.replace(config, model=model), mesh, steps)
        except jax.errors.JaxRuntimeError as error:
            # The compiler refuses a program that is too large, or the device while it runs.
            reason = _out_of_memory(error)
            messages.append(f"training with remat={remat} does not fit: {reason}")
            continue
        columns = {
            "remat": remat,
            "train GiB": row["peak_gib"],
            "train tokens/s": row["tokens_per_second"],
        }
        return columns, messages
    # Empty cells: every row has the same columns.
    return {"remat": "", "train GiB": None, "train tokens/s": None}, messages


def generate(
    arch: Architecture, seed: int, length: int, drawn: int, rows: int
) -> tuple[dict[str, Any], list[str]]:
    """Measure decoding with random weights.

    Args:
      length: of the context, in tokens: the prompt, and a bucket for the `drawn` ones.
    Returns: (columns, messages).
    """
    params = jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(seed))
    engine = Engine(arch, params, {}, decode.BareIds(arch))
    # The engine keeps a whole bucket free for the drawn tokens.
    prompt = length - bucket(drawn)
    try:
        row = decode.measure(engine, rows, prompt, drawn, runs=2)
    except UserError as error:  # the engine knows before it tries
        return {"state MB": None, "decode tokens/s": None}, [f"decoding does not fit: {error}"]
    except jax.errors.JaxRuntimeError as error:
        message = f"decoding does not fit: {_out_of_memory(error)}"
        return {"state MB": None, "decode tokens/s": None}, [message]
    return {"state MB": row["state MB"], "decode tokens/s": row["tokens/s"]}, []


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> str:
    """Return the first line of an out-of-memory error; raise any other error again."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        raise error
    return message.splitlines()[0][:120]


def _architecture(model: ModelConfig, vocab_size: int) -> Architecture:
    """Return a model's architecture, for counting parameters: it does not depend on the device."""
    return from_config(model, model.vocab_size or vocab_size, compute="bfloat16")


def _recurrent_block(kind: str, width: int) -> str:
    """Return a recurrent block with heads of the published size, as wide as the model."""
    published = KINDS[kind]
    value_dim = min(published.value_dim, width)
    key_dim = min(published.key_dim, width)
    heads = width // value_dim
    if kind == "ssm":
        heads = 2 * width // value_dim  # Mamba-2 expands the model's width by two
    return f"{kind} heads={heads} key_dim={key_dim} value_dim={value_dim}"
