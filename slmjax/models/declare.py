"""A weight and a buffer are declared once, where they are created.

Initial value, sharding, optimizer group, Muon's matrix axes, weight decay, compute type, parameter
counts and FLOPs are all read from that declaration.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

AXES = (
    "width",
    "heads",
    "kv_heads",
    "ff",
    "vocab",
    "rows",
    "expert",
)  # parallel/rules.py has mesh axes for them
GROUPS = ("embedding", "head", "matrix", "vector", "own")  # the keys of config.model.multipliers


@dataclasses.dataclass(frozen=True)
class Weight:
    """What is known of a parameter.

    shape: as the model holds it, with the leading axis of stacked layers.
    axes: the logical axis of each dimension, or None.
    inputs: dimensions that are summed over in the product with a token.
    outputs: dimensions that the product writes. Those in neither (layers, experts, heads of their
      own) are batch dimensions: Muon takes each of their entries as a matrix of its own.
    group: embedding, head, matrix or vector; own for a parameter without a declaration.
    uses: how many times a token is multiplied with it; 0 for a look-up.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    group: str = "vector"
    uses: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """Whether it has weight decay."""
        return self.group in ("matrix", "head")

    @property
    def takes_muon(self) -> bool:
        """Whether it is a matrix (or a stack of them) in the hidden layers, see train/optimizer.py."""
        return self.group == "matrix" and bool(self.inputs and self.outputs)

    @property
    def in_compute_type(self) -> bool:
        """Whether it takes part in products, which are in the compute type."""
        return self.group in ("embedding", "head", "matrix")

    def stacked(self, layers: int) -> "Weight":
        """The declaration of so many layers' weights as one array."""
        return dataclasses.replace(
            self,
            shape=(layers, *self.shape),
            axes=(None, *self.axes),
            inputs=tuple(i + 1 for i in self.inputs),
            outputs=tuple(i + 1 for i in self.outputs),
        )


@dataclasses.dataclass(frozen=True)
class Buffer:
    """What is known of a buffer: arrays that change once an optimizer step, without a gradient.

    channel: "forward": the mixer returns what it observed; "cotangent": the buffer's gradient is
      the observation, as for float8 scales. Only these are differentiated, and must be floats.
    combine: "max" or "sum", over microbatches and over applications of a shared block.
    update: (value, observation) -> the next step's value.
    """

    channel: str
    combine: str
    update: Callable[[Any, Any], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Declared(nn.meta.AxisMetadata):
    """A value with its declaration; exists only while a model is initialised."""

    value: Any
    declaration: Weight | Buffer = dataclasses.field(metadata={"static": True})

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: dict) -> "Declared":
        return self

    def remove_axis(self, index: int, params: dict) -> "Declared":
        return self


def weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    *,
    axes: tuple[str | None, ...] | None = None,
    inputs: tuple[int, ...] = (),
    outputs: tuple[int, ...] = (),
    init: float | Callable = 1.0,
    group: str = "matrix",
    dtype: Any = None,
    uses: float = 1.0,
) -> Array:
    """Create a parameter of a module that has the field `arch`.

    Args:
      axes: logical axis of each dimension, among AXES, or None; left out: whole on every device.
      inputs, outputs, group, uses: see Weight.
      init: an initialiser (key, shape, dtype) -> array, or the factor s of a normal distribution
        with deviation s / sqrt(fan in).
      dtype: of the stored parameter; left out: float32.
    Returns: its value; in the compute type where it takes part in products.
    Raises: ValueError for a declaration that does not fit the shape.
    """
    arch = module.arch
    axes = (None,) * len(shape) if axes is None else axes
    declaration = Weight(shape, axes, inputs, outputs, group, uses if inputs else 0.0)
    _check(name, declaration)
    if not callable(init):
        fan_in = max(1, math.prod(shape[i] for i in inputs))
        multiplier = dict(arch.init_scales).get(group, 1.0)
        init = nn.initializers.normal(init * fan_in**-0.5 * multiplier)

    def start(key: Array) -> Declared:
        return Declared(init(key, shape, jnp.dtype(dtype or jnp.float32)), declaration)

    value = module.param(name, start)
    return value.astype(arch.compute) if declaration.in_compute_type else value


def buffer(
    module: nn.Module,
    name: str,
    start: Callable[[], Any],
    *,
    channel: str = "forward",
    combine: str = "sum",
    update: Callable[[Any, Any], Any],
) -> Any:
    """Create a buffer of a module and return its value (any tree of arrays); see Buffer."""
    if channel not in ("forward", "cotangent") or combine not in ("max", "sum"):
        raise ValueError(f"buffer '{name}': channel '{channel}' or combine '{combine}' is unknown")
    declaration = Buffer(channel, combine, update)
    return module.variable("buffers", name, lambda: Declared(start(), declaration)).value


def declarations(boxed: Any, layers: int) -> dict:
    """The declarations in a tree of one block's boxed variables, as of so many stacked layers.

    A parameter that was made with a bare `self.param` is whole on every device, has no weight decay,
    belongs to the group "own", and counts as if every token were multiplied with it.
    """

    def one(leaf: Any) -> Weight | Buffer:
        if isinstance(leaf, Declared):
            known = leaf.declaration
            return known.stacked(layers) if isinstance(known, Weight) else known
        return Weight(leaf.shape, (None,) * len(leaf.shape), group="own", uses=1.0).stacked(layers)

    return jax.tree.map(one, boxed, is_leaf=lambda leaf: isinstance(leaf, Declared))


def unboxed(boxed: Any) -> Any:
    """The same tree with plain values."""
    return nn.meta.unbox(boxed)


def _check(name: str, declaration: Weight) -> None:
    shape, axes = declaration.shape, declaration.axes
    if len(axes) != len(shape):
        raise ValueError(f"weight '{name}': {len(axes)} axes for the shape {shape}")
    unknown = [axis for axis in axes if axis is not None and axis not in AXES]
    if unknown:
        raise ValueError(
            f"weight '{name}': unknown axis '{unknown[0]}'; there is {', '.join(AXES)}"
        )
    if declaration.group not in GROUPS[:-1]:
        known = ", ".join(GROUPS[:-1])
        raise ValueError(f"weight '{name}': unknown group '{declaration.group}'; there is {known}")
    used = declaration.inputs + declaration.outputs
    if len(set(used)) != len(used) or not all(0 <= i < len(shape) for i in used):
        raise ValueError(
            f"weight '{name}': inputs and outputs must be different dimensions of {shape}"
        )
    if declaration.group == "matrix" and not declaration.inputs:
        raise ValueError(
            f"weight '{name}': a matrix needs inputs, the dimensions that are summed over"
        )


def keep_channel(declared: dict, buffers: dict, channel: str) -> dict:
    """The buffers that have this channel; `declared` is laid out as `buffers`."""
    kept = {}
    for name, known in declared.items():
        if isinstance(known, Buffer):
            if known.channel == channel:
                kept[name] = buffers[name]
        elif below := keep_channel(known, buffers.get(name, {}), channel):
            kept[name] = below
    return kept


def merged(one: dict, other: dict) -> dict:
    """Two trees of different buffers as one."""
    both = dict(one)
    for name, below in other.items():
        both[name] = merged(one[name], below) if name in one else below
    return both


def combined(declared: dict, one: dict, other: dict) -> dict:
    """Two observations of the same buffers as one, each as its declaration says."""
    together = {}
    for name, seen in one.items():
        known = declared[name]
        if isinstance(known, Buffer):
            how = jnp.maximum if known.combine == "max" else jnp.add
            together[name] = jax.tree.map(how, seen, other[name])
        else:
            together[name] = combined(known, seen, other[name])
    return together


def updated(declared: dict, buffers: dict, seen: dict) -> dict:
    """Every buffer's next value."""
    new = {}
    for name, known in declared.items():
        if name not in seen:
            raise ValueError(f"buffer '{name}': its mixer returned no observation of it")
        if isinstance(known, Buffer):
            new[name] = known.update(buffers[name], seen[name])
        else:
            new[name] = updated(known, buffers[name], seen[name])
    return new


def nothing_seen(declared: dict, shapes: dict) -> dict:
    """What `combined` starts from, for observations of these shapes."""
    start = {}
    for name, below in shapes.items():
        known = declared[name]
        if not isinstance(known, Buffer):
            start[name] = nothing_seen(known, below)
        elif known.combine == "sum":
            start[name] = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), below)
        else:
            start[name] = jax.tree.map(
                lambda s: jnp.full(s.shape, _smallest(s.dtype), s.dtype), below
            )
    return start


def _smallest(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
