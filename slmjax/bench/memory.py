"""What a token mixer costs at equal parameters: training memory and speed, decode state and speed, by context length.

python -m slmjax.bench memory --config=configs/304m.py --lengths=1024,4096,16384,65536 --figure=memory.svg

Each variant is the config's model with other mixers, in a multiple of four layers, whose feed-forward width is chosen so that all have as
many parameters. A training batch has as many rows as --tokens holds, at least one; all activations are kept where they fit, else each
block is computed again (remat). `train GiB` is what the compiled train step takes, its arguments included; `state MB` are the arrays that
decoding keeps of one row whose prompt fills the context.
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
from slmjax.config import Config
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
USUAL = ("mha", "gqa", "mqa", "shared", *KINDS, "gdn-hybrid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench memory`."""
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
    """A row for each variant and length.

    Raises: UserError for a variant that is none, a context that is shorter than what is drawn, and mixers that leave nothing to the
    feed-forward layers.
    """
    names = arguments.variants.split(",")
    if bad := [name for name in names if name not in VARIANTS]:
        raise UserError(
            f"--variants: '{bad[0]}' is not among {', '.join(VARIANTS)}.{nearest(bad[0], VARIANTS)}"
        )
    if min(arguments.lengths) <= arguments.drawn:
        raise UserError(
            f"--lengths: a context of {min(arguments.lengths)} tokens has no room for a prompt and --drawn={arguments.drawn}."
        )
    use_compile_cache()
    variants = {name: variant(arguments.config, name) for name in names}
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    rows, messages = [], []
    for length in arguments.lengths:
        for name, config in variants.items():
            config = at_length(config, length, arguments.tokens)
            row = {
                "variant": name,
                "context": length,
                "parameters": sizes.parameters(_described(config)).total,
            }
            parts = (
                [measure_training(config, mesh, arguments.steps)]
                if arguments.measure != "decode"
                else []
            )
            if arguments.measure != "train":
                parts.append(generate(config, mesh, length, arguments.drawn, arguments.rows))
            for columns, told in parts:
                row |= columns
                messages += [f"{name}, {length}: {message}" for message in told]
            rows.append(row)
            shell.tell(row)
    if arguments.figure:
        Path(arguments.figure).write_text(
            draw(rows, {name: _resolved(config, mesh) for name, config in variants.items()})
        )
    return {
        "bench": "memory",
        "rows": rows,
        "variants": {name: VARIANTS[name] for name in names},
        "messages": messages,
    }


def variant(config: Config, name: str) -> Config:
    """The config with this variant's mixers, and the feed-forward width (a multiple of 8) at which it has as many parameters as the config.

    Raises: UserError where the mixers alone have more.
    """
    m = config.model
    kind, _, mixed = name.partition("-")
    block = _block(kind, m.width) if kind in KINDS else "attention"
    model = dataclasses.replace(
        m,
        pattern=(block, block, block, "attention") if mixed else (block,),
        kv_heads={"mha": m.heads, "mqa": 1}.get(name, m.kv_heads),
        layers=max(4, 4 * round(m.layers / 4)),
        share_kv=2 if name == "shared" else 1,
    )
    found = dataclasses.replace(config, model=model)
    width = sizes.ff_width_for(_described(found), sizes.parameters(_described(config)).total)
    return dataclasses.replace(config, model=dataclasses.replace(model, ff_width=width))


def at_length(config: Config, length: int, tokens: int) -> Config:
    """Return the config with rows of `length` and about `tokens` tokens a step."""
    data = dataclasses.replace(config.data, seq_len=length)
    train = dataclasses.replace(config.train, batch=max(1, tokens // length))
    return dataclasses.replace(config, data=data, train=train)


def measure_training(config: Config, mesh: Mesh, steps: int) -> tuple[dict[str, Any], list[str]]:
    """(columns of training, messages): with all activations kept, else with each block computed again."""
    told = []
    for remat in dict.fromkeys((config.model.remat, "full")):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
        try:
            with jax.set_mesh(mesh):
                row, _ = measure_train(config, mesh, steps)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            told.append(
                f"training with remat={remat} does not fit: {str(error).splitlines()[0][:120]}"
            )
            continue
        return {
            "remat": remat,
            "train GiB": row["peak_gib"],
            "train tokens/s": row["tokens_per_second"],
        }, told
    return {"remat": "", "train GiB": None, "train tokens/s": None}, told


def generate(
    config: Config, mesh: Mesh, length: int, drawn: int, rows: int
) -> tuple[dict[str, Any], list[str]]:
    """(columns of decoding, messages)."""
    arch = _resolved(config, mesh)
    engine = Engine(
        arch,
        jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(config.seed)),
        {},
        decode.Numbers(arch),
    )
    try:
        found = decode.measure(engine, rows, length - bucket(drawn), drawn, runs=2)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"state MB": None, "decode tokens/s": None}, [
            f"decoding does not fit: {str(error).splitlines()[0][:120]}"
        ]
    return {"state MB": found["state MB"], "decode tokens/s": found["tokens/s"]}, []


def _described(config: Config) -> Architecture:
    """The architecture as on a device with bfloat16."""
    return from_config(
        config.model, config.model.vocab_size or config.data.vocab_size, compute="bfloat16"
    )


def _resolved(config: Config, mesh: Mesh) -> Architecture:
    """The architecture on these devices."""
    return resolve(
        config.model, config.precision, mesh, config.data.vocab_size, config.train.deterministic
    )[0]


def _block(kind: str, width: int) -> str:
    """A recurrent block with heads of the published size, as wide as the model (Mamba-2 twice)."""
    V, K = (min(size, width) for size in KINDS[kind][:2])
    return f"{kind} heads={(2 if kind == 'ssm' else 1) * width // V} key_dim={K} value_dim={V}"
