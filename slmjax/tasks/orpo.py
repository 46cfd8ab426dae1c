"""Preference optimisation without a reference model: the task "orpo"."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from slmjax.data.rows import Rows
from slmjax.models.lm import Model
from slmjax.ops.cross_entropy import token_log_probs
from slmjax.ops.log_odds import log_odds, segment_sums
from slmjax.tasks.task import Evaluation, Loss, Totals, with_terms_of_layers


@dataclasses.dataclass(frozen=True)
class Orpo:
    """Next-token loss of the chosen answers, plus the odds ratio of both answers.

        loss = NLL + odds_weight * softplus(-(log odds(chosen) - log odds(rejected)))

    where the odds are those of exp(-mean nats of an answer's tokens). NLL (negative log-likelihood)
    is the mean over the batch's "weights", the odds term the mean over its pairs: each has its own
    denominator. Source: Hong et al. 2024 (ORPO), equations 6 and 7, where odds_weight is lambda.

    Besides the fields of text, a batch has "answers" [B,T] float32, 1 where the next token belongs
    to an answer, and "pairs" [B,P] float32, 1 for each pair of the row. Segments 2i+1 and 2i+2 of a
    row are the chosen and the rejected dialogue of its pair i.

    Attributes:
      odds_weight: 0 trains on the NLL alone.
      z_loss: coefficient of the squared logsumexp, as in pretraining.
    """

    rows: Rows
    evaluations: Sequence[Evaluation] = ()
    odds_weight: float = 0.1
    z_loss: float = 0.0

    def totals(self, batch: dict) -> Totals:
        """Return "main", the sum of the weights, "odds", the pairs, and "tokens", real tokens."""
        return {
            "main": batch["weights"].sum(),
            "odds": batch["pairs"].sum(),
            "tokens": (batch["segments"] > 0).sum(),
        }

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
        """Return the loss in nats.

        Terms: "loss" (the NLL), "odds" (the odds term without its weight), "preferred" (share of
        pairs whose chosen answer has fewer nats a token), "margin" (of the log-odds), "z".
        """
        hidden, out = model.forward(params, buffers, batch)
        head = model.head(params)
        log_p, lse = token_log_probs(hidden, head, batch["targets"], chunks=model.chunks)
        weights = batch["weights"]
        weight = weights.sum()
        nats = -(log_p * weights).sum()
        squares = (lse**2 * weights).sum()
        terms = {"loss": (nats, weight), "z": (squares, weight)}
        loss = Loss(nats + self.z_loss * squares, weight, terms, out.seen)
        loss = self._with_odds(loss, log_p, batch, totals)
        return with_terms_of_layers(loss, out, batch, totals, model.arch.share_blocks)

    def _with_odds(self, loss: Loss, log_p: Array, batch: dict, totals: Totals) -> Loss:
        """Return the loss with the odds term and what is logged about the pairs."""
        chosen_nats, rejected_nats = answer_nats(log_p, batch)  # each [B,P]
        is_pair = batch["pairs"]
        pairs = is_pair.sum()
        margin = log_odds(chosen_nats) - log_odds(rejected_nats)
        penalty = (jax.nn.softplus(-margin) * is_pair).sum()
        loss = loss.plus("odds", self.odds_weight, (penalty, pairs), totals)
        is_preferred = (chosen_nats < rejected_nats) * is_pair
        logged = {
            "preferred": (is_preferred.sum(), pairs),
            "margin": ((margin * is_pair).sum(), pairs),
        }
        return loss._replace(terms=loss.terms | logged)


def answer_nats(log_p: Array, batch: dict) -> tuple[Array, Array]:
    """Return (mean nats of a token of the chosen answers, of the rejected answers), each [B,P].

    Where a row has no such pair they are 1, so that the odds are finite there.
    """
    answers, segments, is_pair = batch["answers"], batch["segments"], batch["pairs"]
    count = 2 * is_pair.shape[1]
    nats = segment_sums(-log_p * answers, segments, count)
    tokens = segment_sums(answers, segments, count)

    # nats and tokens are [B,2P], of segments 1, 2, ...: columns 0, 2, ... are the chosen answers.
    def means(first: int) -> Array:
        summed, counted = nats[:, first::2], tokens[:, first::2]
        is_answered = (is_pair > 0) & (counted > 0)
        # The divisor is guarded too: the gradient of a division by 0 would not be a number.
        divisor = jnp.where(is_answered, counted, 1.0)
        return jnp.where(is_answered, summed / divisor, 1.0)

    return means(0), means(1)
