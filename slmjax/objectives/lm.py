"""Next-token prediction: the objective of pretraining and annealing."""

from collections.abc import Callable

import jax.numpy as jnp

from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.ops.cross_entropy import token_log_probs


def objective(arch: Architecture, *, z_loss: float = 0.0, chunks: int = 1) -> Callable:
    """objective(params, buffers, batch, *, key, step) -> (loss_sum, weight, aux).

    loss_sum is in nats over the tokens with weight, with z_loss times the squared logsumexp of each added (Chowdhery et al. 2022, PaLM,
    section 5). aux holds metrics as (sum, weight): "cross_entropy" without that term, "z" the mean squared logsumexp.
    """

    def of(params, buffers, batch, *, key=None, step=None):
        hidden, _, _ = lm.forward(arch, params, buffers, batch)
        log_p, lse = token_log_probs(hidden, lm.head(arch, params), batch["targets"], chunks=chunks)
        weights = batch["weights"]
        weight = weights.sum()
        nats, z = -(log_p * weights).sum(), (jnp.square(lse) * weights).sum()
        return nats + z_loss * z, weight, {"cross_entropy": (nats, weight), "z": (z, weight)}

    return of
