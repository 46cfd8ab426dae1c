"""Losses of transformers' LlamaForCausalLM on batches of packed text, token by token."""

from collections.abc import Mapping
from typing import Any

Tensor = Any  # torch.Tensor; torch is imported late, because it is optional


def train_nats(model: Any, batch: Mapping[str, Tensor], mask: Any) -> Tensor:
    """Return the nats of each token [B,T] in training, zero on padding.

    Logits are computed in the compute type and then cast to float32, as in transformers' own loss.

    Args:
      mask: FlexAttention's mask; None for a dense mask, which is made from batch["segments"].
    """
    hidden = _hidden_states(model, batch, mask)
    logits = model.lm_head(hidden)
    return _weighted_nats(logits, batch)


def score_nats(model: Any, batch: Mapping[str, Tensor], mask: Any) -> Tensor:
    """Return the nats of each held-out token [B,T]; as `train_nats`, but with float32 logits."""
    import torch

    hidden = _hidden_states(model, batch, mask)
    # Logits in bfloat16 have three digits: too few to compare models by.
    with torch.autocast(hidden.device.type, enabled=False):
        logits = model.lm_head(hidden.float())
        return _weighted_nats(logits, batch)


def _hidden_states(model: Any, batch: Mapping[str, Tensor], mask: Any) -> Tensor:
    """Return the last hidden states [B,T,D]."""
    if mask is None:
        queries = batch["segments"][:, None, :, None]
        keys = batch["segments"][:, None, None, :]
        # [B,1,T,T]: the same document, and no later token.
        mask = (queries == keys).tril()
    output = model.model(
        input_ids=batch["tokens"],
        attention_mask=mask,
        position_ids=batch["positions"],
        use_cache=False,
    )
    return output.last_hidden_state


def _weighted_nats(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    from torch.nn.functional import cross_entropy

    # cross_entropy takes logits [B*T, V] and int64 targets [B*T].
    flat_logits = logits.float().flatten(0, 1)
    flat_targets = batch["targets"].long().flatten()
    nats = cross_entropy(flat_logits, flat_targets, reduction="none")
    weights = batch["weights"]
    return nats.view_as(weights) * weights
