"""Next-token prediction: the task of pretraining and annealing."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array, Float

from slmjax.data.rows import Rows
from slmjax.models.lm import Model
from slmjax.ops.cross_entropy import weighted_nats
from slmjax.tasks.task import Evaluation, Loss, Totals, with_terms_of_layers


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Mean cross-entropy of the next tokens, weighted by the batch's "weights".

    z_loss: coefficient of each token's squared logsumexp. Source: Chowdhery et al. 2022 (PaLM),
      section 5.
    """

    rows: Rows
    evaluations: Sequence[Evaluation] = ()
    z_loss: float = 0.0

    def totals(self, batch: dict) -> Totals:
        """Return "main", the sum of the weights, and "tokens", the number of real tokens."""
        return {"main": batch["weights"].sum(), "tokens": (batch["segments"] > 0).sum()}

    def loss(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        batch: dict,
        totals: Totals,
        *,
        key: Array,
        step: Array,
    ) -> Loss:
        """Return the loss of `of_hidden` plus the terms of the layers, in nats."""
        hidden, out = model.forward(params, buffers, batch)
        loss = self.of_hidden(model, params, hidden, batch, totals)
        # `of_hidden` does not see `out`, so its loss has no observations of buffers yet.
        loss = loss._replace(seen=out.seen)
        return with_terms_of_layers(loss, out, batch, totals, model.arch.share_blocks)

    def of_hidden(
        self,
        model: Model,
        params: dict,
        hidden: Float[Array, "B T D"],
        batch: dict,
        totals: Totals,
    ) -> Loss:
        """Return the loss of the model's hidden states, without the terms of the layers.

        A subclass may extend it and add terms with `Loss.plus`, which needs `totals`.

        Terms: "loss", the cross-entropy without the z-loss; "z", the mean squared logsumexp.
        """
        weights = batch["weights"]
        # total = nats + z_loss * squares
        total, nats, squares = weighted_nats(
            hidden,
            model.head(params),
            batch["targets"],
            weights,
            z_loss=self.z_loss,
            chunks=model.chunks,
        )
        weight = weights.sum()
        terms = {"loss": (nats, weight), "z": (squares, weight)}
        return Loss(sum=total, weight=weight, terms=terms, seen={})
