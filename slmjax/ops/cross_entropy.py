"""Cross-entropy from hidden states, without float32 logits of the whole batch.

`token_log_probs` returns every token's log-probability, for evaluation and for tasks that compare
tokens. `weighted_nats` returns their weighted sum, for training: it computes its gradient in the
forward pass, while the logits are there, so that they are neither kept nor computed again.

Axes: B rows, T tokens, D width, V vocabulary. T is cut into N pieces of t tokens; N is the argument
`chunks`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.ops.cross_entropy_pieces import (
    Head,
    Hidden,
    PerToken,
    Scalar,
    Targets,
    at_targets,
    cut_pieces,
    head_gradient,
    join_pieces,
    one_hot,
    probabilities,
    rounded_log_probs,
    weighted_sums,
    wide_logits,
)

MEMORY = 16e9  # bytes that a device is taken to have which does not report its memory
# One piece's logits and their gradient take at most 1 / LOGITS_PART of the memory. The 304M model
# then has two pieces on GPUs of 80 and of 141 GB.
LOGITS_PART = 28


def chunks_for(
    batch: int,
    length: int,
    vocab: int,
    memory: float | None,
    itemsize: int = 4,
) -> int:
    """Return the number of pieces to cut T into, so that one piece's logits take little memory.

    It is a power of two that divides T: the smallest one that suffices, else the largest one.

    Args:
      batch, length: rows that one device holds, and their tokens (T).
      memory: bytes of device memory; None (unknown) counts as 16 GB.
      itemsize: bytes of a logit.
    """
    needed = batch * length * vocab * 2 * itemsize  # logits and their gradient
    allowed = (memory or MEMORY) / LOGITS_PART
    chunks = 1
    while needed / chunks > allowed and length % (chunks * 2) == 0:
        chunks *= 2
    return chunks


def token_log_probs(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    chunks: int = 1,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Return (log p(target), logsumexp of the logits), both float32.

    Logits are hidden @ head with products in hidden's type and sums in float32. T is cut into
    `chunks` pieces, and not B, which stays sharded over devices. The backward pass computes a
    piece's logits again. The head's gradient is summed in float32.

    With z the target's logit and o the logsumexp of all other logits, log p = -softplus(o - z). In
    this form log p and its gradient keep their digits where p is close to 1. The difference of z
    and the logsumexp of all logits would lose them.

    Raises: ValueError where chunks does not divide T.
    """
    _check_chunks(hidden, chunks)
    head = head.astype(hidden.dtype)
    return _token_log_probs(hidden, head, targets, chunks)


def weighted_nats(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    z_loss: float = 0.0,
    chunks: int = 1,
) -> tuple[Scalar, Scalar, Scalar]:
    """Return (loss, nats, squares); only the loss has a gradient, of hidden and head.

        nats = sum of weight * -log p(target)
        squares = sum of weight * logsumexp^2
        loss = nats + z_loss * squares

    Logits are rounded to hidden's type before the softmax, so that a bfloat16 model writes and
    reads half the bytes. Sums are float32, also that of the head's gradient over the pieces of T.

    Raises: ValueError where chunks does not divide T.
    Source: z-loss as in Chowdhery et al. 2022 (PaLM), section 5.
    """
    _check_chunks(hidden, chunks)
    head = head.astype(hidden.dtype)
    return _weighted_nats(hidden, head, targets, weights, z_loss, chunks)


def reference(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Return token_log_probs' results by log_softmax over all logits: slow, obvious, for tests."""
    logits = wide_logits(hidden, head.astype(hidden.dtype))
    log_probs = jax.nn.log_softmax(logits)
    log_p = at_targets(log_probs, targets)
    return log_p, jax.nn.logsumexp(logits, axis=-1)


def _check_chunks(hidden: Float[Array, "B T D"], chunks: int) -> None:
    if hidden.shape[1] % chunks:
        raise ValueError(f"{chunks} chunks do not divide {hidden.shape[1]} tokens")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_log_probs(hidden, head, targets, chunks):
    return _forward(hidden, head, targets, chunks)[0]


def _forward(hidden, head, targets, chunks):
    def logits_of_piece(arrays):
        hidden, targets = arrays
        logits = wide_logits(hidden, head)
        is_target = one_hot(targets, head.shape[1])
        target_logit = jnp.where(is_target, logits, 0.0).sum(-1)
        others = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, logits), axis=-1)
        return target_logit, others

    if chunks == 1:
        target_logit, others = logits_of_piece((hidden, targets))
    else:
        pieces = cut_pieces(chunks, hidden, targets)
        target_logit, others = map(join_pieces, jax.lax.map(logits_of_piece, pieces))
    # -log p = log(1 + exp(others - target_logit)).
    nats = jax.nn.softplus(others - target_logit)
    residuals = (hidden, head, targets, target_logit, others)
    return (-nats, target_logit + nats), residuals


def _backward(chunks, residuals, gradients):
    hidden, head, targets, target_logit, others = residuals
    d_log_p, d_lse = gradients
    # Neither is 1 minus the other, so both keep their digits where p(target) is close to 0 or 1.
    p_others = jax.nn.sigmoid(others - target_logit)
    p_target = jax.nn.sigmoid(target_logit - others)
    d_target = d_log_p * p_others + d_lse * p_target
    d_others = (d_lse - d_log_p) * p_others
    arrays = (hidden, targets, others, d_target, d_others)

    if chunks == 1:
        d_hidden, d_head = _piece_gradients(*arrays, head)
        return d_hidden, d_head.astype(head.dtype), None

    def step(d_head, arrays):
        d_hidden, d_head_piece = _piece_gradients(*arrays, head)
        return d_head + d_head_piece, d_hidden

    zeros = jnp.zeros(head.shape, jnp.float32)
    d_head, d_hidden = jax.lax.scan(step, zeros, cut_pieces(chunks, *arrays))
    return join_pieces(d_hidden), d_head.astype(head.dtype), None


_token_log_probs.defvjp(_forward, _backward)


def _piece_gradients(
    hidden: Hidden,
    targets: Targets,
    others: PerToken,
    d_target: PerToken,
    d_others: PerToken,
    head: Head,
) -> tuple[Hidden, Head]:
    """Return a piece's gradients of (hidden, head).

    Args:
      others: logsumexp of the logits of all other tokens than the target.
      d_target: gradient of the target's logit.
      d_others: sum of the gradients of the other logits. Each has the share of it that the softmax
        over these logits gives it.
    """
    logits = wide_logits(hidden, head)
    share = jnp.exp(logits - others[..., None])
    is_target = one_hot(targets, head.shape[1])
    d_logits = jnp.where(is_target, d_target[..., None], d_others[..., None] * share)
    d_logits = d_logits.astype(hidden.dtype)
    # Summed over V in float32 and rounded once.
    d_hidden = jnp.einsum("btv,dv->btd", d_logits, head, preferred_element_type=jnp.float32)
    return d_hidden.astype(hidden.dtype), head_gradient(hidden, d_logits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_nats(hidden, head, targets, weights, z_loss, chunks):
    # JAX calls this where no gradient is taken, and otherwise _weighted_forward.
    def sums_of_piece(arrays):
        hidden, targets, weights = arrays
        _, log_p, lse = rounded_log_probs(hidden, head, targets)
        return weighted_sums(log_p, lse, weights)

    pieces = cut_pieces(chunks, hidden, targets, weights)
    nats, squares = jax.lax.map(sums_of_piece, pieces)
    loss = nats.sum() + z_loss * squares.sum()
    return loss, nats.sum(), squares.sum()


def _weighted_forward(hidden, head, targets, weights, z_loss, chunks):
    if chunks == 1:
        sums, d_hidden, d_head = _weighted_piece(hidden, head, targets, weights, z_loss)
        nats, squares = sums
        return (nats + z_loss * squares, nats, squares), (d_hidden, d_head)

    def step(d_head, arrays):
        hidden, targets, weights = arrays
        sums, d_hidden, d_head_piece = _weighted_piece(hidden, head, targets, weights, z_loss)
        return d_head + d_head_piece, (sums, d_hidden)

    # The head's gradient is carried in float32: pieces add up to sums over all tokens.
    zeros = jnp.zeros(head.shape, jnp.float32)
    pieces = cut_pieces(chunks, hidden, targets, weights)
    d_head, (sums, d_hidden) = jax.lax.scan(step, zeros, pieces)
    nats, squares = sums
    nats, squares = nats.sum(), squares.sum()
    d_hidden = join_pieces(d_hidden)
    return (nats + z_loss * squares, nats, squares), (d_hidden, d_head)


def _weighted_backward(z_loss, chunks, residuals, gradients):
    d_hidden, d_head = residuals
    d_loss, _, _ = gradients  # nats and squares are metrics
    # The residuals are the gradients of the loss already; the chain rule multiplies them by d_loss.
    d_hidden = d_loss.astype(d_hidden.dtype) * d_hidden
    d_head = (d_loss * d_head).astype(d_hidden.dtype)
    return d_hidden, d_head, None, None


_weighted_nats.defvjp(_weighted_forward, _weighted_backward)


def _weighted_piece(
    hidden: Hidden,
    head: Head,
    targets: Targets,
    weights: PerToken,
    z_loss: float,
) -> tuple[tuple[Scalar, Scalar], Hidden, Head]:
    """Return ((nats, squares), and the loss's gradients of hidden and head) of a piece."""
    logits, log_p, lse = rounded_log_probs(hidden, head, targets)
    p = probabilities(logits, lse)
    is_target = one_hot(targets, head.shape[1])
    # loss = sum of weight (lse - logit of the target + z_loss lse^2), so that
    # d logits = d_lse p - weight one_hot, [B,t,V]
    d_lse = weights * (1 + 2 * z_loss * lse)
    everywhere = d_lse[..., None] * p
    at_target = jnp.where(is_target, weights[..., None], 0.0)
    d_logits = (everywhere - at_target).astype(hidden.dtype)
    # Rounded to hidden's type by the product itself, which then writes half the bytes.
    d_hidden = jnp.einsum("btv,dv->btd", d_logits, head, preferred_element_type=hidden.dtype)
    sums = weighted_sums(log_p, lse, weights)
    return sums, d_hidden, head_gradient(hidden, d_logits)
