"""AdamW and Muon, as each parameter's declaration says.

Parameters are handled as a flat dict {path: array}. State keeps the same keys, so that it takes its
parameters' shardings.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from slmjax.config import TrainConfig
from slmjax.models.declare import PART_OF, Weight
from slmjax.parallel.rules import flatten_tree, unflatten
from slmjax.train.schedule import Rates
from slmjax.train.trainable import split, trainable_paths

ADAM_B1 = 0.9  # decay of the first moment, as everywhere (Loshchilov and Hutter 2019)
MUON_BETA = 0.95  # decay of Muon's momentum (Jordan 2024)
# Root mean square of Muon's updates: AdamW's usual size, so that both share a learning rate. Liu et
# al. 2025 (Muon is scalable), section 2.2.
MUON_RMS = 0.2


class Optimizer:
    """Updates parameters with AdamW, or with AdamW and Muon, as config.train.optimizer says.

    init(params) -> state; update(gradients, state, params, rates) -> (params, state).

    Only trainable parameters have state, and `update` takes these alone; `trainable` holds their
    paths, see train/trainable.py. Stacked layers are independent matrices for Muon. Weight decay is
    decoupled. It is multiplied by the learning rate of its group, or by train.decay_lr where that
    is set: then no learning rate changes it.

    Source: AdamW: Loshchilov and Hutter 2019, whose algorithm 2 has the decay without the learning
    rate. Muon: Jordan 2024, with the update's size matched to AdamW's (Liu et al. 2025).
    """

    def __init__(
        self,
        train: TrainConfig,
        multipliers: Mapping,
        declared: dict,
        moment_dtype: str = "float32",
    ):
        """Make the two update rules.

        Args:
          multipliers: {group: {"lr": ..., "decay": ...}}, see config.model.multipliers.
          declared: each parameter's Weight, laid out as the parameters.
          moment_dtype: type of the first moments.
        """
        self.train = train
        self.declared = flatten_tree(declared)
        self.trainable = trainable_paths(declared, train.trainable)
        self.multipliers = {group: dict(values) for group, values in multipliers.items()}
        self.adam = optax.scale_by_adam(
            b1=ADAM_B1, b2=train.b2, eps=train.eps, mu_dtype=moment_dtype
        )
        self.muon = optax.contrib.scale_by_muon(
            beta=MUON_BETA, mu_dtype=moment_dtype, weight_dimension_numbers=self._matrix_axes
        )

    def init(self, params: dict) -> dict:
        """Return zero moments for every trainable parameter."""
        params, _ = split(params, self.trainable)
        state = {}
        for name, part in self._parts(params).items():
            state[name] = self._rule(name).init(part)
        return state

    def update(self, gradients: dict, state: dict, params: dict, rates: Rates) -> tuple[dict, dict]:
        """Take one step at the given rates; return (params, state)."""
        old = flatten_tree(params)
        new, new_state = {}, {}
        for name, part in self._parts(gradients).items():
            updates, new_state[name] = self._rule(name).update(part, state[name])
            for path, update in updates.items():
                weight = self.declared[path]
                rate = rates.learning * self._multiplier(weight.group, "lr")
                if name == "muon":
                    update = update * _muon_scale(weight)
                decay = 0.0
                if weight.decays:
                    decay = self.train.weight_decay * self._multiplier(weight.group, "decay")
                # In float32 even where moments or parameters have another type.
                value, update = old[path].astype(jnp.float32), update.astype(jnp.float32)
                if self.train.decay_lr:
                    shrunk = rates.decay * decay * value
                    value = value - rate * update - shrunk
                else:
                    value = value - rate * (update + decay * value)
                new[path] = value.astype(old[path].dtype)
        return unflatten(new), new_state

    def _rule(self, name: str) -> optax.GradientTransformation:
        return self.muon if name == "muon" else self.adam

    def _parts(self, tree: dict) -> dict[str, dict]:
        """Split leaves into those of "adam" and of "muon"; a part without leaves is left out."""
        parts: dict[str, dict] = {"adam": {}, "muon": {}}
        # With train.optimizer=muon, AdamW still takes all but the matrices of hidden layers.
        for path, leaf in flatten_tree(tree).items():
            by_muon = self.train.optimizer == "muon" and self.declared[path].takes_muon
            parts["muon" if by_muon else "adam"][path] = leaf
        return {name: part for name, part in parts.items() if part}

    def _multiplier(self, group: str, name: str) -> ArrayLike:
        return group_multiplier(self.multipliers, group, name)

    def _matrix_axes(self, flat: dict) -> dict:
        """Return for each parameter which axes are a matrix's inputs and which its outputs.

        The axis of stacked layers is neither.
        """
        axes = {}
        for path in flat:
            weight = self.declared[path]
            axes[path] = optax.contrib.MuonDimensionNumbers(weight.inputs, weight.outputs)
        return axes


def group_multiplier(multipliers: Mapping, group: str, name: str) -> ArrayLike:
    """Return the factor `name` (lr or decay) of a group; 1 where it has none.

    Args:
      multipliers: {group: {name: factor}}.
    """
    whole = multipliers.get(PART_OF.get(group), {}).get(name, 1.0)
    return multipliers.get(group, {}).get(name, whole)


def clip(gradients: dict, largest: float) -> tuple[dict, Float[Array, ""]]:
    """Scale gradients to a global norm of at most `largest`; 0 leaves them as they are.

    Returns: (gradients, their norm before scaling).
    Source: Pascanu et al. 2013.
    """
    norm = optax.tree.norm(gradients)
    if largest:
        # 1e-12: gradients that are all zero stay zero.
        scale = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
        gradients = jax.tree.map(lambda g: g * scale, gradients)
    return gradients, norm


def _muon_scale(weight: Weight) -> float:
    """Return the factor that gives Muon's orthogonal update the root mean square MUON_RMS."""
    # An orthogonal matrix of R x C has root mean square 1 / sqrt(max(R, C)).
    rows = math.prod(weight.shape[i] for i in weight.inputs)
    columns = math.prod(weight.shape[i] for i in weight.outputs)
    return MUON_RMS * math.sqrt(max(rows, columns))
