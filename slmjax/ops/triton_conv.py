"""Triton kernels (through Pallas) of the short convolution and what follows it, on NVIDIA GPUs: each number is read and written once.

XLA makes a dozen passes of it, and its sums over all tokens for the weights' gradient run at a tenth of memory's speed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

TINY = 1e-6  # inside the root of a length, as in every published implementation
TILE = 4096  # numbers that one program computes: tokens times channels of a head


def conv_forward(given, *, unit: bool, interpret: bool):
    """silu(convolution + bias) by heads, of length 1 where `unit`.

    `given` holds x [B,T,H,c], weight [W,H,c], segments [B,T] and, where there is one, bias [H,c]; c is a power of two.
    """
    return _call(functools.partial(_forward, unit=unit), given, ("x",), interpret)["x"]


def backward(given, gradient, *, unit: bool, interpret: bool):
    """Gradients of x, weight and bias, as a dict."""
    names = [name for name in given if name != "segments"]
    found = _call(
        functools.partial(_backward, unit=unit), given | {"gradient": gradient}, names, interpret
    )
    found |= {name: found[name].sum(0) for name in names if name != "x"}
    return found | _call(_transposed, given | {"x": found["x"]}, ("x",), interpret)


def _call(kernel, given, wanted, interpret):
    """Runs `kernel` on tiles of tokens of each row and head. Results are named and shaped like what they are gradients of.

    Those of weight and bias are float32 and have an axis of tiles in front, to be summed over.
    """
    B, T, H, c = given["x"].shape
    tile = min(max(TILE // c, 16), 1 << (T - 1).bit_length())
    tiles = -(-T // tile)
    widths = {
        name: ((0, 0), (0, tiles * tile - T)) + ((0, 0),) * (x.ndim - 2)
        for name, x in given.items()
    }
    given = {
        name: x if name in ("weight", "bias") else jnp.pad(x, widths[name])
        for name, x in given.items()
    }
    places = {  # of a program's part; all of a row's tokens are there to be read, as neighbours lie in other tiles
        "segments": ((None, tiles * tile), lambda b, t, h: (b, 0)),
        "weight": ((given["weight"].shape[0], None, c), lambda b, t, h: (0, h, 0)),
        "bias": ((None, c), lambda b, t, h: (h, 0)),
    }
    row = ((None, tiles * tile, None, c), lambda b, t, h: (b, 0, h, 0))
    outs, shapes = {}, {}
    for name in wanted:
        x = given[name]
        if name == "x":
            outs[name] = pl.BlockSpec((None, tile, None, c), lambda b, t, h: (b, t, h, 0))
            shapes[name] = jax.ShapeDtypeStruct(x.shape, x.dtype)
        else:
            block, at = places[name]
            outs[name] = pl.BlockSpec(
                (None, *block), lambda b, t, h, at=at: (b * tiles + t, *at(b, t, h))
            )
            shapes[name] = jax.ShapeDtypeStruct((B * tiles, *x.shape), jnp.float32)
    found = pl.pallas_call(
        functools.partial(kernel, tile=tile),
        grid=(B, tiles, H),
        in_specs=[{name: pl.BlockSpec(*places.get(name, row)) for name in given}],
        out_specs=outs,
        out_shape=shapes,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
    )(given)
    return found | ({"x": found["x"][:, :T]} if tiles * tile > T else {})


def _forward(given, out, *, tile, unit):
    _, total = _weighted(given, tile)
    y = total * jax.nn.sigmoid(total)
    out["x"][...] = (y * _shrink(y) if unit else y).astype(out["x"].dtype)


def _backward(given, out, *, tile, unit):
    taps, total = _weighted(given, tile)
    sigmoid = jax.nn.sigmoid(total)
    gradient = given["gradient"][pl.ds(pl.program_id(1) * tile, tile)].astype(jnp.float32)
    if unit:
        y = total * sigmoid
        shrink = _shrink(y)
        y *= shrink
        gradient = shrink * (gradient - y * jnp.sum(gradient * y, axis=1)[:, None])
    gradient *= sigmoid * (1.0 + total * (1.0 - sigmoid))
    out["x"][...] = gradient.astype(out["x"].dtype)
    for j, tap in enumerate(taps):
        out["weight"][j] = jnp.sum(gradient * tap, axis=0)
    if "bias" in out:
        out["bias"][...] = jnp.sum(gradient, axis=0)


def _transposed(given, out, *, tile):
    taps = _taps(given, tile, 1)
    out["x"][...] = sum(
        tap * weight[None] for tap, weight in zip(taps, _rows(given["weight"]))
    ).astype(out["x"].dtype)


def _weighted(given, tile):
    """(taps, convolution + bias) of this program's tokens, float32."""
    taps = _taps(given, tile, -1)
    total = sum(tap * weight[None] for tap, weight in zip(taps, _rows(given["weight"])))
    if "bias" in given:
        total += given["bias"][...].astype(jnp.float32)[None]
    return taps, total


def _taps(given, tile, direction):
    """x of the token itself and of its W - 1 neighbours before (direction -1) or behind (1), 0 where they are of another document."""
    x, segments, W = given["x"], given["segments"], given["weight"].shape[0]
    place = pl.program_id(1) * tile + jnp.arange(tile)
    own, found = segments[place], []
    for j in range(W):
        at = place + direction * j
        here = jnp.clip(at, 0, x.shape[0] - 1)
        same = (at == here) & (segments[here] == own) & (own != 0)
        found.append(jnp.where(same[:, None], x[here, :].astype(jnp.float32), 0.0))
    return found


def _rows(weight):
    return [weight[j].astype(jnp.float32) for j in range(weight.shape[0])]


def _shrink(y):
    return jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=1) + TINY)[:, None]
