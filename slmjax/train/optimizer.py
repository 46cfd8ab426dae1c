"""AdamW and Muon, as each parameter's declaration says.

Parameters are handled as a flat dict {path: array}; state keeps the same keys, so that it takes its parameters' shardings.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from slmjax.config import TrainConfig
from slmjax.models.declare import Weight
from slmjax.parallel.rules import flatten_tree, unflatten
from slmjax.train.trainable import split, trainable_paths

ADAM_B1 = 0.9  # decay of the first moment, as everywhere (Loshchilov and Hutter 2019)
MUON_BETA = 0.95  # Jordan 2024
MUON_RMS = 0.2  # Liu et al. 2025 (Muon is scalable), section 2.2: updates of AdamW's usual size, so that both share a learning rate


class Optimizer:
    """init(params) -> state; update(gradients, state, params, factor) -> (params, state).

    There is state for trainable parameters only (`trainable`, their paths), and `update` takes these
    alone, see train/trainable.py.

    AdamW: Loshchilov and Hutter 2019. Muon: Jordan 2024, with the update's size matched to AdamW's (Liu et al. 2025). Stacked layers are
    independent matrices for Muon. Weight decay is decoupled and multiplied by the learning rate.
    """

    def __init__(
        self,
        train: TrainConfig,
        multipliers: Mapping,
        declared: dict,
        moment_dtype: str = "float32",
    ):
        """Describe the update.

        Args:
          multipliers: {group: {"lr": ..., "decay": ...}}, see config.model.multipliers.
          declared: each parameter's Weight, laid out as the parameters.
          moment_dtype: of the first moments.
        """
        self.train = train
        self.declared = flatten_tree(declared)
        self.trainable = trainable_paths(declared, train.trainable)
        self.multipliers = {group: dict(of) for group, of in multipliers.items()}
        self.adam = optax.scale_by_adam(
            b1=ADAM_B1, b2=train.b2, eps=train.eps, mu_dtype=moment_dtype
        )
        self.muon = optax.contrib.scale_by_muon(
            beta=MUON_BETA, mu_dtype=moment_dtype, weight_dimension_numbers=self._matrix_axes
        )

    def init(self, params: dict) -> dict:
        """Zero moments for every trainable parameter."""
        params, _ = split(params, self.trainable)
        return {
            name: getattr(self, name).init(part)
            for name, part in self._parts(params).items()
            if part
        }

    def update(
        self, gradients: dict, state: dict, params: dict, factor: Float[Array, ""]
    ) -> tuple[dict, dict]:
        """One step at `factor` times the peak learning rate."""
        parts, old, new_state = self._parts(gradients), flatten_tree(params), {}
        new = {}
        for name, part in parts.items():
            if not part:
                continue
            updates, new_state[name] = getattr(self, name).update(part, state[name])
            for path, update in updates.items():
                known = self.declared[path]
                rate = self.train.lr * factor * self._multiplier(known.group, "lr")
                if name == "muon":
                    update = update * _muon_scale(known)
                decay = (
                    self.train.weight_decay * self._multiplier(known.group, "decay")
                    if known.decays
                    else 0.0
                )
                value = old[path].astype(jnp.float32)
                new[path] = (value - rate * (update.astype(jnp.float32) + decay * value)).astype(
                    old[path].dtype
                )
        return unflatten(new), new_state

    def _parts(self, tree: dict) -> dict[str, dict]:
        parts: dict[str, dict] = {"adam": {}, "muon": {}}
        for path, leaf in flatten_tree(tree).items():
            by_muon = self.train.optimizer == "muon" and self.declared[path].takes_muon
            parts["muon" if by_muon else "adam"][path] = leaf
        return parts

    def _multiplier(self, group: str, what: str) -> float:
        return float(self.multipliers.get(group, {}).get(what, 1.0))

    def _matrix_axes(self, flat: dict) -> dict:
        """Which axes of each parameter are a matrix's inputs and outputs; stacked axes are neither."""
        numbers = optax.contrib.MuonDimensionNumbers
        return {
            path: numbers(self.declared[path].inputs, self.declared[path].outputs) for path in flat
        }


def clip(gradients: dict, largest: float) -> tuple[dict, Float[Array, ""]]:
    """Gradients scaled to a global norm of at most `largest` (0: as they are), and the norm before. Source: Pascanu et al. 2013."""
    norm = optax.tree.norm(gradients)
    if largest:
        scale = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
        gradients = jax.tree.map(lambda g: g * scale, gradients)
    return gradients, norm


def _muon_scale(known: Weight) -> float:
    sides = [math.prod(known.shape[i] for i in axes) for axes in (known.inputs, known.outputs)]
    return MUON_RMS * math.sqrt(max(sides))
