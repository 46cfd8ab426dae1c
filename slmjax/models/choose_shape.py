"""The shape of a model for a number of parameters, for the launcher's --params."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from slmjax.config import ModelConfig
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import from_config, parts
from slmjax.models.sizes import ff_width_for, parameters

# The fields of the model that make its shape.
SHAPE = ("width", "layers", "heads", "kv_heads", "head_dim", "ff_width")
LARGEST = 10**12  # parameters that --params takes at most
TOLERANCE = 0.03  # how far a shape's total may be from the budget
FACTORS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}  # of the letter behind a number of --params
# Layers at 125M, which grow with the fourth root of the budget. MobileLLM (Liu et al. 2024) has 30
# layers at 125M, 32 at 350M, 40 at 600M and 54 at 1B.
DEPTH, DEPTH_BUDGET = 30, 125e6
# Wide shapes have a layer for this many channels, and at least four. In equal time on one GPU, 8
# layers of width 512 did better than 15 of width 384 (configs/30m.py) and compiled faster. nanochat
# (Karpathy 2025) has the same ratio.
WIDTH_OF_LAYER, LEAST_LAYERS = 64, 4
MOST_UNUSUAL = math.log(1.5)  # wide shapes have at most this factor more or fewer layers
QUERIES_PER_KEY = 3.5  # query heads for each key/value head, aimed at on a logarithmic scale
MOST_QUERIES_PER_KEY = 5
MOST_HEADS = 32  # query heads


def parse_params(text: str | int | float) -> int:
    """Return a number of parameters: 50_000_000 for "50m", "0.05b", "50e6" or the number itself.

    Raises: UserError unless it is a number from 1 to LARGEST, with k, m or b after it or nothing.
    """
    number = r"[0-9][0-9_]*\.?[0-9]*(?:e[0-9]+)?"
    match = re.fullmatch(rf"\s*({number})\s*([kmb]?)\s*", str(text).lower())
    value = float(match[1]) * FACTORS[match[2]] if match else 0
    if not 1 <= value <= LARGEST:
        expected = f"a number of parameters such as 50m or 1b, {LARGEST:.0e} at most"
        raise UserError(f"--params={text}: expected {expected}.")
    return round(value)


def reshape(
    params: int, model: ModelConfig, tokenizer_size: int, *, wide: bool = False
) -> dict[str, int]:
    """Return the fields of `model` that give it about `params` parameters in all.

    The shape is that of `shape_for`, with its layers rounded to whole repeats of the pattern. Where
    other mixers or an untied head change the total, the feed-forward width makes up for it.

    Args:
      tokenizer_size: rows of the embedding where the config does not set them.
      wide: see `shape_for`.
    Raises: UserError if no shape is within TOLERANCE.
    """
    vocab_size = model.vocab_size or tokenizer_size
    shape = shape_for(params, vocab_size, wide=wide)
    # Blocks of each part of the pattern; only the middle one repeats.
    start, repeated, end = map(len, parts(model.pattern))
    unrepeated = start + end
    repeats = max(1, round((shape["layers"] - unrepeated) / repeated))
    shape["layers"] = unrepeated + repeats * repeated

    arch = from_config(dataclasses.replace(model, **shape), vocab_size)
    if abs(parameters(arch).total / params - 1) <= TOLERANCE:
        return shape
    shape["ff_width"] = ff_width_for(arch, params)
    total = parameters(dataclasses.replace(arch, ff_width=shape["ff_width"])).total
    if abs(total / params - 1) > TOLERANCE:
        raise UserError(
            f"--params={params}: with config.model.pattern the nearest model has {total:,} "
            "parameters; choose the shape by hand."
        )
    return shape


class _Candidate(NamedTuple):
    """A shape that is near the budget. Candidates are compared by cost, then by `error`."""

    cost: float  # how unusual the shape is
    error: float  # relative distance of its total from the budget
    fields: dict[str, int]


def shape_for(params: int, vocab_size: int, *, wide: bool = False) -> dict[str, int]:
    """Return the model fields of a tied decoder of about `params` parameters in all.

    The fields are width, layers, heads, kv_heads, head_dim and ff_width. Shapes are deep and thin:
    about 30 layers at 125M, see DEPTH. Heads have 128 channels from 100M, 64 below and 32 below 5M;
    heads x head size is the width; the feed-forward width is 8/3 of the width (Shazeer 2020); three
    or four query heads share a key/value head where they divide.

    Args:
      wide: a layer for every WIDTH_OF_LAYER channels instead, see there.
    Raises: UserError if no shape is within 3 %: the vocabulary is too large for the budget.
    """
    candidates = list(_candidates(params, vocab_size, wide))
    if not candidates:
        raise UserError(
            f"--params={params}: no shape is within {TOLERANCE:.0%} with {vocab_size} tokens; take "
            "a smaller vocabulary."
        )
    best = min(candidates, key=lambda candidate: (candidate.cost, candidate.error))
    return best.fields


def _candidates(params: int, vocab_size: int, wide: bool) -> Iterator[_Candidate]:
    """Yield the shapes near the budget, for each number of heads and feed-forward width to try."""
    # Larger models take wider heads, which fill a tile of the matrix unit.
    head_dim, ff_multiple = 32, 64
    if wide and params < 1e6:
        # Few wide heads would leave large gaps between the sizes.
        head_dim, ff_multiple = 16, 32
    if params >= 5e6:
        head_dim = 64
    if params >= 100e6:
        head_dim, ff_multiple = 128, 128
    for heads in range(1, MOST_HEADS + 1):
        kv_heads = _kv_heads(heads)
        # 7 or 11 query heads, for example, would all share one key/value head.
        if heads / kv_heads > MOST_QUERIES_PER_KEY:
            continue
        width = heads * head_dim
        usual_layers = DEPTH * (params / DEPTH_BUDGET) ** 0.25
        if wide:
            usual_layers = max(LEAST_LAYERS, width / WIDTH_OF_LAYER)
        # The feed-forward width, in units of `ff_multiple`.
        usual_units = round(8 / 3 * width / ff_multiple)
        for units in (usual_units - 1, usual_units, usual_units + 1):
            if units <= 0:
                continue
            ff_width = ff_multiple * units
            arch = Architecture(vocab_size, width, heads, kv_heads, head_dim, ff_width, stack=())
            layers = _nearest_layers(arch, params)
            error = abs(decoder_parameters(arch, layers) / params - 1)
            if error > TOLERANCE:
                continue
            # Depth decides. An unusual feed-forward width costs as much as a fifth more or fewer
            # layers, and so does a total that is off by more than half of the tolerance.
            cost = abs(math.log(layers / usual_layers))
            if wide and cost > MOST_UNUSUAL:
                continue
            cost = cost + 0.2 * (units != usual_units)
            cost = cost + 0.2 * (error > TOLERANCE / 2)
            fields = {
                "width": width,
                "layers": layers,
                "heads": heads,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                "ff_width": ff_width,
            }
            yield _Candidate(cost, error, fields)


def _nearest_layers(arch: Architecture, params: int) -> int:
    """Return the layers with which a decoder comes nearest to the budget."""
    # The total is linear in the layers.
    outside_layers = decoder_parameters(arch, 0)
    one_layer = decoder_parameters(arch, 1) - outside_layers
    return max(1, round((params - outside_layers) / one_layer))


def decoder_parameters(arch: Architecture, layers: int) -> int:
    """Return parameters of a tied decoder of `layers` plain blocks, attention and SwiGLU.

    A closed form for the search over many shapes; `sizes.parameters` counts any model.
    """
    D, N, K, H = arch.width, arch.heads, arch.kv_heads, arch.head_dim
    attention = D * H * (2 * N + 2 * K)  # query and out, key and value
    swiglu = 3 * D * arch.ff_width
    block = attention + swiglu + 2 * D  # a block has two norms
    return arch.vocab_size * D + D + layers * block


def _kv_heads(heads: int) -> int:
    """Return the divisor of `heads` whose quotient is nearest to QUERIES_PER_KEY."""
    divisors = [k for k in range(1, heads + 1) if heads % k == 0]

    def distance(k: int) -> float:
        return abs(math.log(heads / k / QUERIES_PER_KEY))

    return min(divisors, key=distance)
