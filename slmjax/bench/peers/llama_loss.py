"""Losses of transformers' LlamaForCausalLM on batches of packed text, token by token."""

from typing import Any

# torch is imported late, because it is optional: its types are Any here.
Module = Any
Tensor = Any
Tensors = dict[str, Tensor]  # a batch of text on the device


def train_nats(model: Module, batch: Tensors, mask: Any) -> Tensor:
    """Return the nats of each token [B,T] in training, zero on padding.

    Logits are computed in the compute type and then cast to float32, as in transformers' own loss.

    Args:
      mask: FlexAttention's BlockMask; None for a dense mask, which is made from batch["segments"].
    """
    hidden = _hidden_states(model, batch, mask)
    logits = model.lm_head(hidden)
    return _weighted_nats(logits, batch)


def score_nats(model: Module, batch: Tensors, mask: Any) -> Tensor:
    """Return the nats of each held-out token [B,T]: `train_nats`, but with logits in float32."""
    import torch

    hidden = _hidden_states(model, batch, mask)
    # bfloat16 keeps two to three digits of a logit, which are too few to compare models.
    with torch.autocast(hidden.device.type, enabled=False):
        logits = model.lm_head(hidden.float())
        return _weighted_nats(logits, batch)


def _hidden_states(model: Module, batch: Tensors, mask: Any) -> Tensor:
    """Return the last hidden states [B,T,D]."""
    if mask is None:
        segments = batch["segments"]
        queries = segments[:, None, :, None]
        keys = segments[:, None, None, :]
        # [B,1,T,T]: the same document, and no later token.
        mask = (queries == keys).tril()
    output = model.model(
        input_ids=batch["tokens"],
        attention_mask=mask,
        position_ids=batch["positions"],
        use_cache=False,
    )
    return output.last_hidden_state


def _weighted_nats(logits: Tensor, batch: Tensors) -> Tensor:
    """Return the nats of each token [B,T] times its weight."""
    from torch.nn.functional import cross_entropy

    # cross_entropy takes logits [B*T, V] and int64 targets [B*T].
    flat_logits = logits.float().flatten(0, 1)
    flat_targets = batch["targets"].long().flatten()
    nats = cross_entropy(flat_logits, flat_targets, reduction="none")
    weights = batch["weights"]
    return nats.view_as(weights) * weights
