"""Declarations: a weight and a buffer are declared once, where they are created.

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

# Logical axes. parallel/rules.py maps them to axes of the mesh.
AXES = ("width", "heads", "kv_heads", "ff", "vocab", "rows", "expert")
# The keys of config.model.multipliers. "own" is for parameters without a declaration.
GROUPS = ("embedding", "head", "matrix", "residual", "vector", "final_norm", "own")
DECLARED_GROUPS = GROUPS[:-1]
DECAYING_GROUPS = ("head", "matrix", "residual")  # those with weight decay
# {group: the group that it is part of}. What is set for the whole holds for a part, except where
# the part has a value of its own.
PART_OF = {"residual": "matrix", "final_norm": "vector"}


@dataclasses.dataclass(frozen=True)
class Weight:
    """The declaration of a parameter.

    shape: of the array of one layer, or of the array that stacks layers (see `stacked`).
    axes: the logical axis of each dimension, or None.
    inputs: dimensions that are summed over in the product with a token.
    outputs: dimensions that the product writes. Dimensions in neither (layers, experts, heads of
      their own) are batch dimensions: Muon takes each of their entries as a matrix of its own.
    group: embedding, head, matrix, residual (a matrix that writes into the residual stream), vector
      or final_norm (the gain before the head); own for a parameter without a declaration.
    uses: how many times a token is multiplied with it, on average; 0 for a look-up.
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
        return self.group in DECAYING_GROUPS

    @property
    def takes_muon(self) -> bool:
        """Whether it is a matrix (or a stack of them) in the hidden layers.

        See train/optimizer.py.
        """
        is_matrix = self.group in ("matrix", "residual")
        return is_matrix and bool(self.inputs and self.outputs)

    @property
    def in_compute_type(self) -> bool:
        """Whether it takes part in products, which are in the compute type."""
        return self.group in ("embedding", "head", "matrix", "residual")

    def stacked(self, layers: int) -> "Weight":
        """Return the declaration of the array that stacks this weight of `layers` layers."""
        return dataclasses.replace(
            self,
            shape=(layers, *self.shape),
            axes=(None, *self.axes),
            inputs=tuple(i + 1 for i in self.inputs),
            outputs=tuple(i + 1 for i in self.outputs),
        )


@dataclasses.dataclass(frozen=True)
class Buffer:
    """The declaration of a buffer: a value that every optimizer step updates from observations.

    channel: where an observation comes from. "forward": the mixer returns it. "cotangent": it is
      the buffer's gradient, as for float8 scales; such a buffer must hold floats.
    combine: "max" or "sum": how the observations of microbatches, and of a shared block's
      applications, become one.
    update: (value, observation) -> the next step's value.
    """

    channel: str
    combine: str
    update: Callable[[Any, Any], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Declared(nn.meta.AxisMetadata):
    """A value with its declaration. It exists only while a model is initialised.

    Flax's own boxes fail under `set_mesh` with logical names and lose an axis under vmap.
    """

    value: Any
    declaration: Weight | Buffer = dataclasses.field(metadata={"static": True})

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        return dataclasses.replace(self, value=val)

    # Stacked axes are added by `Weight.stacked`, outside of vmap.
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
    """Create a parameter of a module that has the field `arch`, and return its value.

    The value is in the compute type if it takes part in products.

    Args:
      axes: logical axis of each dimension, among AXES, or None; left out: whole on every device.
      inputs, outputs, group, uses: see Weight. Without outputs AdamW updates a matrix, also where
        others are updated by Muon.
      init: an initialiser (key, shape, dtype) -> array, or the factor s of a normal distribution
        with deviation s / sqrt(fan in). The group's multiplier `init` scales the latter only.
      dtype: of the stored parameter; left out: float32.
    Raises: ValueError for a declaration that does not fit the shape.
    """
    arch = module.arch
    if axes is None:
        axes = (None,) * len(shape)
    # A weight without inputs is in no matrix product with tokens.
    declaration = Weight(shape, axes, inputs, outputs, group, uses if inputs else 0.0)
    _check(name, declaration)
    if not callable(init):
        # With init and multiplier at 1, a product has the variance of its inputs.
        fan_in = max(1, math.prod(shape[i] for i in inputs))
        scales = dict(arch.init_scales)
        multiplier = scales.get(group, scales.get(PART_OF.get(group), 1.0))
        init = nn.initializers.normal(init * fan_in**-0.5 * multiplier)

    def boxed(key: Array) -> Declared:
        stored_type = jnp.dtype(dtype or jnp.float32)
        return Declared(init(key, shape, stored_type), declaration)

    value = module.param(name, boxed)
    # Only the value of this step is cast: stored parameters keep their type.
    if declaration.in_compute_type:
        value = value.astype(arch.compute)
    return value


def buffer(
    module: nn.Module,
    name: str,
    start: Callable[[], Any],
    *,
    channel: str = "forward",
    combine: str = "sum",
    update: Callable[[Any, Any], Any],
) -> Any:
    """Create a buffer of a module and return its value, any tree of arrays.

    Args:
      start: makes the value before the first step.
      channel, combine, update: see Buffer.
    Raises: ValueError for an unknown channel or combination.
    """
    if channel not in ("forward", "cotangent") or combine not in ("max", "sum"):
        raise ValueError(f"buffer '{name}': channel '{channel}' or combine '{combine}' is unknown")
    declaration = Buffer(channel, combine, update)

    def boxed() -> Declared:
        return Declared(start(), declaration)

    return module.variable("buffers", name, boxed).value


def declarations(boxed: Any, layers: int) -> dict:
    """Return the declarations of one block's boxed variables, each for `layers` stacked layers.

    A parameter that was made with a bare `self.param` is whole on every device, has no weight
    decay, belongs to the group "own", and counts as if every token were multiplied with it.
    """

    def declaration_of(leaf: Any) -> Weight | Buffer:
        if not isinstance(leaf, Declared):
            axes = (None,) * len(leaf.shape)
            undeclared = Weight(leaf.shape, axes, group="own", uses=1.0)
            return undeclared.stacked(layers)
        # A buffer's declaration has no shape, so that it holds for any number of layers.
        if isinstance(leaf.declaration, Buffer):
            return leaf.declaration
        return leaf.declaration.stacked(layers)

    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, Declared)

    return jax.tree.map(declaration_of, boxed, is_leaf=is_box)


def unboxed(boxed: Any) -> Any:
    """Return a tree of boxed variables with their plain values."""
    return nn.meta.unbox(boxed)


def _check(name: str, declaration: Weight) -> None:
    """Raise ValueError for a declaration that does not fit its shape."""
    shape, axes = declaration.shape, declaration.axes
    if len(axes) != len(shape):
        raise ValueError(f"weight '{name}': {len(axes)} axes for the shape {shape}")
    for axis in axes:
        if axis is not None and axis not in AXES:
            known = ", ".join(AXES)
            raise ValueError(f"weight '{name}': unknown axis '{axis}'; there is {known}")
    group = declaration.group
    if group not in DECLARED_GROUPS:
        known = ", ".join(DECLARED_GROUPS)
        raise ValueError(f"weight '{name}': unknown group '{group}'; there is {known}")
    # A dimension is among the inputs, or the outputs, or neither.
    used = declaration.inputs + declaration.outputs
    repeated = len(set(used)) != len(used)
    if repeated or not all(0 <= i < len(shape) for i in used):
        fault = f"inputs and outputs must be different dimensions of {shape}"
        raise ValueError(f"weight '{name}': {fault}")
    if group in ("matrix", "residual") and not declaration.inputs:
        fault = "a matrix needs inputs, the dimensions that are summed over"
        raise ValueError(f"weight '{name}': {fault}")


# Trees of buffers, of their declarations (`declared`) and of observations have one layout, that of
# the stack. An entry of `declared` is a dict of further entries, or the declaration of one buffer,
# whose value may itself be a tree.


def keep_channel(declared: dict, buffers: dict, channel: str) -> dict:
    """Return the buffers that have this channel, without dicts that would be empty."""
    kept = {}
    for name, entry in declared.items():
        if isinstance(entry, Buffer):
            if entry.channel == channel:
                kept[name] = buffers[name]
            continue
        kept_below = keep_channel(entry, buffers.get(name, {}), channel)
        if kept_below:
            kept[name] = kept_below
    return kept


def merged(first: dict, second: dict) -> dict:
    """Return two trees of different buffers as one tree."""
    both = dict(first)
    for name, value in second.items():
        # No buffer is in both trees, so a name that is in both leads to a dict in each.
        both[name] = merged(first[name], value) if name in first else value
    return both


def combined(declared: dict, first: dict, second: dict) -> dict:
    """Combine two trees of observations of the same buffers into one, as declared."""
    together = {}
    for name, observation in first.items():
        entry = declared[name]
        if not isinstance(entry, Buffer):
            together[name] = combined(entry, observation, second[name])
            continue
        combine = jnp.maximum if entry.combine == "max" else jnp.add
        together[name] = jax.tree.map(combine, observation, second[name])
    return together


def updated(declared: dict, buffers: dict, seen: dict) -> dict:
    """Return every buffer's next value, from the step's observations `seen`.

    Raises: ValueError for a buffer that has no observation: it would silently stay as it is.
    """
    new = {}
    for name, entry in declared.items():
        if name not in seen:
            raise ValueError(f"buffer '{name}': its mixer returned no observation")
        if isinstance(entry, Buffer):
            new[name] = entry.update(buffers[name], seen[name])
        else:
            new[name] = updated(entry, buffers[name], seen[name])
    return new


def nothing_seen(declared: dict, shapes: dict) -> dict:
    """Return the observations that `combined` starts from: zeros for a sum, the least for a max.

    Args:
      shapes: of the observations, a tree of ShapeDtypeStructs.
    """
    neutral = {}
    for name, shape in shapes.items():
        entry = declared[name]
        if not isinstance(entry, Buffer):
            neutral[name] = nothing_seen(entry, shape)
        elif entry.combine == "sum":
            neutral[name] = jax.tree.map(_zeros, shape)
        else:
            neutral[name] = jax.tree.map(_smallest, shape)
    return neutral


def _zeros(struct: jax.ShapeDtypeStruct) -> Array:
    return jnp.zeros(struct.shape, struct.dtype)


def _smallest(struct: jax.ShapeDtypeStruct) -> Array:
    """Return an array of the smallest number of its type."""
    if jnp.issubdtype(struct.dtype, jnp.floating):
        return jnp.full(struct.shape, -jnp.inf, struct.dtype)
    # Integers have no infinity.
    least = jnp.iinfo(struct.dtype).min
    return jnp.full(struct.shape, least, struct.dtype)
