"""Triton kernels (through Pallas) of the short convolution and its activation, for NVIDIA GPUs.

The kernels read and write each number once. XLA makes a dozen passes of the same work, and its sums
over all tokens for the weights' gradient run at a tenth of the memory's bandwidth.

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
TILE = 4096  # numbers that one program computes: tokens of a tile times channels of a head
LEAST = 16  # fewest tokens of a tile, unless the row is shorter, and fewest channels of a head
PARAMETERS = ("weight", "bias")  # arrays without an axis of tokens

Arrays = dict[str, Array]
Tile = Float[Array, "tile c"]  # of one row and head


def conv_forward(arrays: Arrays, *, unit: bool, interpret: bool) -> Float[Array, "B T H c"]:
    """Return silu(convolution + bias); with `unit`, each head's vector scaled to length 1.

    Args:
      arrays: x [B,T,H,c], weight [W,H,c], segments [B,T] and optionally bias [H,c]; c is a power of
        two.
      interpret: run in Pallas' interpreter, on any device, slowly.
    """
    kernel = functools.partial(_forward, unit=unit)
    return _call(kernel, arrays, ("x",), interpret)["x"]


def conv_backward(
    arrays: Arrays,
    gradient: Float[Array, "B T H c"],
    *,
    unit: bool,
    interpret: bool,
) -> Arrays:
    """Return the gradients of x, weight and bias by name; arguments as in conv_forward."""
    names = [name for name in arrays if name != "segments"]
    kernel = functools.partial(_backward, unit=unit)
    inputs = arrays | {"gradient": gradient}
    gradients = _call(kernel, inputs, names, interpret)
    for name in names:
        if name in PARAMETERS:
            gradients[name] = gradients[name].sum(0)  # over tiles
    # The first call's "x" is the gradient of the convolution's result. Each token's gradient of x
    # needs it from the tokens behind, of which some are in other tiles: hence a second call.
    inputs = arrays | {"x": gradients["x"]}
    return gradients | _call(_transposed, inputs, ("x",), interpret)


def _call(kernel: Callable, arrays: Arrays, wanted: Sequence[str], interpret: bool) -> Arrays:
    """Run `kernel` on tiles of tokens of each row and head; return its results by name.

    A result is named and shaped like the array whose gradient it is. Those of weight and bias are
    float32 and have an axis of tiles in front, to be summed over.
    """
    B, T, H, c = arrays["x"].shape
    next_power_of_two = 1 << (T - 1).bit_length()
    tile = min(max(TILE // c, LEAST), next_power_of_two)  # tokens of a tile
    tiles = -(-T // tile)
    length = tiles * tile
    # The last tile is filled with padding, which is of segment 0 and gives zeros.
    inputs = {}
    for name, x in arrays.items():
        inputs[name] = x if name in PARAMETERS else _padded(x, length)

    parts = _input_parts(inputs, length)
    out_parts, out_shapes = {}, {}
    for name in wanted:
        x = inputs[name]
        if name == "x":
            out_parts[name] = pl.BlockSpec((None, tile, None, c), lambda b, t, h: (b, t, h, 0))
            out_shapes[name] = jax.ShapeDtypeStruct(x.shape, x.dtype)
        else:
            shape = (B * tiles, *x.shape)
            out_parts[name] = _for_each_tile(parts[name], tiles)
            out_shapes[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    out = pl.pallas_call(
        functools.partial(kernel, tile=tile),
        grid=(B, tiles, H),
        in_specs=[parts],
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
    _, T, *rest = x.shape
    unpadded = [(0, 0)] * len(rest)
    return jnp.pad(x, [(0, 0), (0, length - T), *unpadded])


def _input_parts(inputs: Arrays, length: int) -> dict[str, pl.BlockSpec]:
    """Return the part of each array that the program of row b, tile t and head h sees.

    It sees all tokens of its row, because neighbours lie in other tiles.
    """
    W, _, c = inputs["weight"].shape
    parts = {}
    for name in inputs:
        # None: the axis falls away.
        if name == "segments":
            parts[name] = pl.BlockSpec((None, length), lambda b, t, h: (b, 0))
        elif name == "weight":
            parts[name] = pl.BlockSpec((W, None, c), lambda b, t, h: (0, h, 0))
        elif name == "bias":
            parts[name] = pl.BlockSpec((None, c), lambda b, t, h: (h, 0))
        else:
            parts[name] = pl.BlockSpec((None, length, None, c), lambda b, t, h: (b, 0, h, 0))
    return parts


def _for_each_tile(part: pl.BlockSpec, tiles: int) -> pl.BlockSpec:
    """Return the part of an array that has `part` for each row and tile, along its first axis.

    Programs run in any order, so that each needs a place of its own to write to.
    """

    def place(b, t, h):
        return (b * tiles + t, *part.index_map(b, t, h))

    return pl.BlockSpec((None, *part.block_shape), place)


# The kernels. `inputs` and `out` are dicts of references, named as in `_call`.
def _forward(inputs, out, *, tile, unit):
    _, total = _weighted(inputs, tile)
    y = total * jax.nn.sigmoid(total)
    if unit:
        y = y * _inverse_length(y)
    result = out["x"]
    result[...] = y.astype(result.dtype)


def _backward(inputs, out, *, tile, unit):
    """Write the gradient of the convolution's result to "x", and a tile's part of the weights'."""
    taps, total = _weighted(inputs, tile)
    sigmoid = jax.nn.sigmoid(total)
    own_tokens = pl.ds(pl.program_id(1) * tile, tile)
    gradient = inputs["gradient"][own_tokens].astype(jnp.float32)
    if unit:
        # A change of y along its own direction does not change y / |y|: that part falls away.
        y = total * sigmoid
        inverse_length = _inverse_length(y)
        y *= inverse_length
        along = jnp.sum(gradient * y, axis=1)[:, None]
        gradient = inverse_length * (gradient - y * along)
    # The derivative of silu(total) = total sigmoid(total).
    slope = sigmoid * (1.0 + total * (1.0 - sigmoid))
    gradient *= slope
    result = out["x"]
    result[...] = gradient.astype(result.dtype)
    # Parts of this tile; conv_backward sums over tiles.
    for j, tap in enumerate(taps):
        out["weight"][j] = jnp.sum(gradient * tap, axis=0)
    if "bias" in out:
        out["bias"][...] = jnp.sum(gradient, axis=0)


def _transposed(inputs, out, *, tile):
    """Write the gradient of x, the transposed convolution of the gradient that `x` holds here."""
    taps = _taps(inputs, tile, 1)
    total = _sum_of_taps(taps, inputs["weight"])
    result = out["x"]
    result[...] = total.astype(result.dtype)


def _weighted(inputs, tile: int) -> tuple[list[Tile], Tile]:
    """Return (taps, convolution + bias) of this program's tokens, float32."""
    taps = _taps(inputs, tile, -1)
    total = _sum_of_taps(taps, inputs["weight"])
    if "bias" in inputs:
        bias = inputs["bias"][...].astype(jnp.float32)
        total += bias[None]
    return taps, total


def _taps(inputs, tile: int, direction: int) -> list[Tile]:
    """Return x at each token and at its W - 1 neighbours, 0 for those of another document.

    Args:
      direction: -1 for the neighbours before, 1 for those behind.
    """
    x, segments = inputs["x"], inputs["segments"]
    token = pl.program_id(1) * tile + jnp.arange(tile)  # numbers of the tile's tokens in the row
    own_segment = segments[token]
    taps = []
    for j in range(inputs["weight"].shape[0]):
        neighbour = token + direction * j
        # A neighbour outside of the row is read at the row's edge, and masked.
        inside = jnp.clip(neighbour, 0, x.shape[0] - 1)
        same = (neighbour == inside) & (segments[inside] == own_segment)
        visible = (same & (own_segment != 0))[:, None]
        values = x[inside, :].astype(jnp.float32)
        taps.append(jnp.where(visible, values, 0.0))
    return taps


def _sum_of_taps(taps: list[Tile], weight: Any) -> Tile:
    """Return the taps' sum, weighted by `weight`, a reference to [W,c]."""
    rows = [weight[j].astype(jnp.float32) for j in range(len(taps))]
    total = 0
    for tap, row in zip(taps, rows, strict=True):
        total += tap * row[None]
    return total


def _inverse_length(y: Tile) -> Float[Array, "tile 1"]:
    square_length = jnp.sum(jnp.square(y), axis=1)
    return jax.lax.rsqrt(square_length + TINY)[:, None]
