"""Next-token prediction: the objective of pretraining and annealing."""

from collections.abc import Callable

from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.ops.cross_entropy import weighted_nats


def objective(arch: Architecture, *, z_loss: float = 0.0, chunks: int = 1) -> Callable:
    """objective(params, buffers, batch, *, key, step) -> (loss_sum, weight, aux).

    loss_sum is in nats over the tokens with weight, with z_loss times the squared logsumexp of each added (Chowdhery et al. 2022, PaLM,
    section 5). aux holds metrics as (sum, weight): "cross_entropy" without that term, "z" the mean squared logsumexp.
    """

    def of(params, buffers, batch, *, key=None, step=None):
        hidden, _ = lm.forward(arch, params, buffers, batch)
        weights = batch["weights"]
        loss, nats, squares = weighted_nats(hidden, lm.head(arch, params), batch["targets"], weights, z_loss=z_loss, chunks=chunks)
        weight = weights.sum()
        return loss, weight, {"cross_entropy": (nats, weight), "z": (squares, weight)}

    return of
