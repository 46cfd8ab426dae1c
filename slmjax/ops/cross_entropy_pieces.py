"""Shapes and parts of the cross-entropy: logits, softmax and sums of one piece of T.

Axes as in ops/cross_entropy.py: T is cut into N pieces of t tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Scalar = Float[Array, ""]
Head = Float[Array, "D V"]
# Of a piece:
Hidden = Float[Array, "B t D"]
Logits = Float[Array, "B t V"]
PerToken = Float[Array, "B t"]
Targets = Int[Array, "B t"]


def rounded_log_probs(
    hidden: Hidden, head: Head, targets: Targets
) -> tuple[Logits, PerToken, PerToken]:
    """Return (logits rounded to hidden's type, log p(target), logsumexp) of a piece.

    The latter two are computed from the rounded logits, in float32.
    """
    logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=hidden.dtype)
    wide = logits.astype(jnp.float32)
    lse = jax.nn.logsumexp(wide, axis=-1)
    # A sum with one term and not a look-up: on a CPU the loss and its gradient take 7 % less time.
    is_target = one_hot(targets, head.shape[1])
    target_logits = jnp.where(is_target, wide, 0.0).sum(-1)
    return logits, target_logits - lse, lse


def weighted_sums(log_p: PerToken, lse: PerToken, weights: PerToken) -> tuple[Scalar, Scalar]:
    """Return (nats, squares) as weighted_nats defines them."""
    nats = -(log_p * weights).sum()
    squares = (jnp.square(lse) * weights).sum()
    return nats, squares


def probabilities(logits: Logits, lse: PerToken) -> Logits:
    """Return the softmax of logits whose logsumexp is known, in float32."""
    wide = logits.astype(jnp.float32)
    return jnp.exp(wide - lse[..., None])


def at_targets(logits: Logits, targets: Targets) -> PerToken:
    """Return each token's logit, or other entry over V, at its target."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return chosen[..., 0]


def wide_logits(hidden: Hidden, head: Head) -> Logits:
    """Return the logits with products in hidden's type and sums in float32, unrounded."""
    return jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)


def head_gradient(hidden: Hidden, d_logits: Logits) -> Head:
    """Return a piece's part of the head's gradient, in float32."""
    return jnp.einsum("btd,btv->dv", hidden, d_logits, preferred_element_type=jnp.float32)


def one_hot(targets: Targets, vocab: int) -> Bool[Array, "B t V"]:
    """Return for each token which entry of the vocabulary is its target."""
    return jax.nn.one_hot(targets, vocab, dtype=jnp.bool_)


def cut_pieces(chunks: int, *arrays: Shaped[Array, "B T ..."]) -> tuple[Array, ...]:
    """Return each array with T cut into N = `chunks` pieces: [N,B,t,...]."""
    pieces = []
    for x in arrays:
        B, T, *rest = x.shape
        split = x.reshape(B, chunks, T // chunks, *rest)  # [B,N,t,...]
        pieces.append(jnp.moveaxis(split, 1, 0))
    return tuple(pieces)


def join_pieces(x: Shaped[Array, "N B t ..."]) -> Shaped[Array, "B T ..."]:
    """Return the pieces of an array as one again: cut_pieces undone."""
    x = jnp.moveaxis(x, 0, 1)  # [B,N,t,...]
    B, _, _, *rest = x.shape
    return x.reshape(B, -1, *rest)
