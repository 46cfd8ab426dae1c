"""Triton kernels (through Pallas) of the short convolution and its activation, for NVIDIA GPUs.

Each number is read and written once. XLA makes a dozen passes of it, and its sums over all tokens
for the weights' gradient run at a tenth of memory's speed.

Axes: B rows, T tokens, H heads, c channels of a head, W taps.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

TINY = 1e-6  # inside the root of a length, as in every published implementation
TILE = 4096  # numbers that one program computes: tokens times channels of a head
LEAST = 16  # tokens of a tile
PARAMETERS = ("weight", "bias")  # arrays without an axis of tokens


def conv_forward(
    arrays: dict[str, Array], *, unit: bool, interpret: bool
) -> Float[Array, "B T H c"]:
    """Return silu(convolution + bias) by heads, scaled to length 1 where `unit`.

    Args:
      arrays: x [B,T,H,c], weight [W,H,c], segments [B,T] and optionally bias [H,c]; c is a power of
        two.
      interpret: run in Pallas' interpreter, on any device, slowly.
    """
    return _call(functools.partial(_forward, unit=unit), arrays, ("x",), interpret)["x"]


def conv_backward(
    arrays: dict[str, Array], gradient: Float[Array, "B T H c"], *, unit: bool, interpret: bool
) -> dict[str, Array]:
    """Return the gradients of x, weight and bias by name; arguments as in conv_forward."""
    names = [name for name in arrays if name != "segments"]
    kernel = functools.partial(_backward, unit=unit)
    gradients = _call(kernel, arrays | {"gradient": gradient}, names, interpret)
    for name in names:
        if name in PARAMETERS:
            gradients[name] = gradients[name].sum(0)  # over tiles
    transposed = _call(_transposed, arrays | {"x": gradients["x"]}, ("x",), interpret)
    return gradients | transposed


def _call(
    kernel: Callable, arrays: dict[str, Array], wanted: Sequence[str], interpret: bool
) -> dict[str, Array]:
    """Run `kernel` on tiles of tokens of each row and head; return its results by name.

    A result is named and shaped like the array whose gradient it is. Those of weight and bias are
    float32 and have an axis of tiles in front, to be summed over.
    """
    B, T, H, c = arrays["x"].shape
    tile = min(max(TILE // c, LEAST), 1 << (T - 1).bit_length())
    tiles = -(-T // tile)
    length = tiles * tile
    inputs = {}
    for name, x in arrays.items():
        inputs[name] = x if name in PARAMETERS else _padded(x, length)

    # A program sees all tokens of its row, because neighbours lie in other tiles.
    row = pl.BlockSpec((None, length, None, c), lambda b, t, h: (b, 0, h, 0))
    parts = {
        "segments": pl.BlockSpec((None, length), lambda b, t, h: (b, 0)),
        "weight": pl.BlockSpec((len(inputs["weight"]), None, c), lambda b, t, h: (0, h, 0)),
        "bias": pl.BlockSpec((None, c), lambda b, t, h: (h, 0)),
    }
    out_parts, out_shapes = {}, {}
    for name in wanted:
        x = inputs[name]
        if name == "x":
            out_parts[name] = pl.BlockSpec((None, tile, None, c), lambda b, t, h: (b, t, h, 0))
            out_shapes[name] = jax.ShapeDtypeStruct(x.shape, x.dtype)
        else:
            out_parts[name] = _for_each_tile(parts[name], tiles)
            out_shapes[name] = jax.ShapeDtypeStruct((B * tiles, *x.shape), jnp.float32)
    out = pl.pallas_call(
        functools.partial(kernel, tile=tile),
        grid=(B, tiles, H),
        in_specs=[{name: parts.get(name, row) for name in inputs}],
        out_specs=out_parts,
        out_shape=out_shapes,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
    )(inputs)
    if length > T:
        out["x"] = out["x"][:, :T]
    return out


def _padded(x: Array, length: int) -> Array:
    """Return x [B,T,...] with zeros behind its tokens, up to `length`."""
    widths = ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, widths)


def _for_each_tile(part: pl.BlockSpec, tiles: int) -> pl.BlockSpec:
    """Return the part of an array that has `part` for each row and tile, along its first axis."""

    def place(b, t, h):
        return (b * tiles + t, *part.index_map(b, t, h))

    return pl.BlockSpec((None, *part.block_shape), place)


def _forward(inputs, out, *, tile, unit):
    _, total = _weighted(inputs, tile)
    y = total * jax.nn.sigmoid(total)
    if unit:
        y = y * _inverse_length(y)
    out["x"][...] = y.astype(out["x"].dtype)


def _backward(inputs, out, *, tile, unit):
    """Write gradients of the convolution's result ("x"), and a tile's part of those of weights."""
    taps, total = _weighted(inputs, tile)
    sigmoid = jax.nn.sigmoid(total)
    gradient = inputs["gradient"][pl.ds(pl.program_id(1) * tile, tile)].astype(jnp.float32)
    if unit:
        y = total * sigmoid
        shrink = _inverse_length(y)
        y *= shrink
        along = jnp.sum(gradient * y, axis=1)[:, None]
        gradient = shrink * (gradient - y * along)
    gradient *= sigmoid * (1.0 + total * (1.0 - sigmoid))
    out["x"][...] = gradient.astype(out["x"].dtype)
    for j, tap in enumerate(taps):
        out["weight"][j] = jnp.sum(gradient * tap, axis=0)
    if "bias" in out:
        out["bias"][...] = jnp.sum(gradient, axis=0)


def _transposed(inputs, out, *, tile):
    """Write the gradient of x from that of the convolution's result: taps of the tokens behind."""
    total = _sum_of_taps(_taps(inputs, tile, 1), inputs["weight"])
    out["x"][...] = total.astype(out["x"].dtype)


def _weighted(inputs, tile: int) -> tuple[list[Float[Array, "tile c"]], Float[Array, "tile c"]]:
    """Return (taps, convolution + bias) of this program's tokens, float32."""
    taps = _taps(inputs, tile, -1)
    total = _sum_of_taps(taps, inputs["weight"])
    if "bias" in inputs:
        total += inputs["bias"][...].astype(jnp.float32)[None]
    return taps, total


def _taps(inputs, tile: int, direction: int) -> list[Float[Array, "tile c"]]:
    """Return x at each token and at its W - 1 neighbours, 0 for those of another document.

    Args:
      direction: -1 for the neighbours before, 1 for those behind.
    """
    x, segments = inputs["x"], inputs["segments"]
    place = pl.program_id(1) * tile + jnp.arange(tile)
    own = segments[place]
    taps = []
    for j in range(inputs["weight"].shape[0]):
        neighbour = place + direction * j
        inside = jnp.clip(neighbour, 0, x.shape[0] - 1)
        same = (neighbour == inside) & (segments[inside] == own) & (own != 0)
        taps.append(jnp.where(same[:, None], x[inside, :].astype(jnp.float32), 0.0))
    return taps


def _sum_of_taps(taps: list[Float[Array, "tile c"]], weight: Any) -> Float[Array, "tile c"]:
    rows = [weight[j].astype(jnp.float32) for j in range(weight.shape[0])]
    return sum(tap * row[None] for tap, row in zip(taps, rows, strict=True))


def _inverse_length(y: Float[Array, "tile c"]) -> Float[Array, "tile 1"]:
    return jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=1) + TINY)[:, None]
