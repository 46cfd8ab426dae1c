"""Cross-entropy from hidden states without float32 logits of the whole batch, with hand-written backward passes.

`token_log_probs` gives every token's log-probability, for evaluation and for tasks that compare tokens. `weighted_nats` gives their
weighted sum, for training: its gradient is made in the forward pass, while the logits are there, so that they are not kept or made again.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def chunks_for(batch: int, length: int, vocab: int, memory: float | None, itemsize: int = 4) -> int:
    """Pieces along T so that one piece's logits and their gradient take at most 1/28 of the device's memory.

    Args:
      batch, length: rows and tokens that one device holds.
      memory: bytes of device memory; None (unknown) counts as 16 GB.
      itemsize: bytes of a logit.
    """
    needed = batch * length * vocab * 2 * itemsize
    chunks = 1
    while (
        needed / chunks > (memory or 16e9) / 28 and chunks < length and length % (chunks * 2) == 0
    ):
        chunks *= 2
    return chunks


def token_log_probs(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    chunks: int = 1,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(log p(target), logsumexp of the logits), both float32.

    Logits are hidden @ head with products in hidden's type and sums in float32. The T axis is cut into `chunks`, so that B stays sharded
    over devices; a chunk's logits are computed again in the backward pass, except with one chunk, where they are kept in hidden's type.
    The head's gradient is added up in float32.
    Raises: ValueError where chunks does not divide T.
    """
    if hidden.shape[1] % chunks:
        raise ValueError(f"{chunks} chunks do not divide {hidden.shape[1]} tokens")
    return _token_log_probs(hidden, head.astype(hidden.dtype), targets, chunks)


def weighted_nats(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    z_loss: float = 0.0,
    chunks: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """(loss, nats, squares): loss = nats + z_loss * squares, nats = sum of weight * -log p(target), squares = sum of weight * logsumexp^2.

    Only the loss has a gradient, towards hidden and head. Logits are rounded to hidden's type before the softmax, so that a bfloat16 model
    writes and reads half the bytes; sums are float32, also the head's gradient over the `chunks` pieces of T.
    Raises: ValueError where chunks does not divide T.
    """
    if hidden.shape[1] % chunks:
        raise ValueError(f"{chunks} chunks do not divide {hidden.shape[1]} tokens")
    return _weighted_nats(hidden, head.astype(hidden.dtype), targets, weights, z_loss, chunks)


def reference(hidden, head, targets):
    """The same by log_softmax over full float32 logits: slow, obvious, for tests."""
    logits = jnp.einsum(
        "btd,dv->btv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return log_p, jax.nn.logsumexp(logits, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_log_probs(hidden, head, targets, chunks):
    return _forward(hidden, head, targets, chunks)[0]


def _forward(hidden, head, targets, chunks):
    def piece(args):
        h, t = args
        logits = _logits(h, head)
        lse = jax.nn.logsumexp(logits, axis=-1)
        return (
            jnp.take_along_axis(logits, t[..., None], axis=-1)[..., 0] - lse,
            lse,
            logits.astype(h.dtype),
        )

    if chunks == 1:
        log_p, lse, logits = piece((hidden, targets))
        return (log_p, lse), (hidden, head, targets, lse, logits)
    log_p, lse = jax.lax.map(
        lambda args: piece(args)[:2], (_split(hidden, chunks), _split(targets, chunks))
    )
    log_p, lse = _join(log_p), _join(lse)
    return (log_p, lse), (hidden, head, targets, lse, None)


def _backward(chunks, residuals, gradients):
    hidden, head, targets, lse, logits = residuals
    g_log_p, g_lse = gradients

    def piece(h, t, z, g, gz, logits):
        p = jnp.exp(logits.astype(jnp.float32) - z[..., None])
        hit = jax.nn.one_hot(t, head.shape[1], dtype=jnp.bool_)
        d_logits = (jnp.where(hit, g[..., None], 0.0) + (gz - g)[..., None] * p).astype(h.dtype)
        d_hidden = jnp.einsum(
            "btv,dv->btd", d_logits, head, preferred_element_type=jnp.float32
        ).astype(h.dtype)
        return d_hidden, jnp.einsum("btd,btv->dv", h, d_logits, preferred_element_type=jnp.float32)

    if chunks == 1:
        d_hidden, d_head = piece(hidden, targets, lse, g_log_p, g_lse, logits)
        return d_hidden, d_head.astype(head.dtype), None

    def step(d_head, args):
        h, t, z, g, gz = args
        d_hidden, more = piece(h, t, z, g, gz, _logits(h, head))
        return d_head + more, d_hidden

    pieces = tuple(_split(x, chunks) for x in (hidden, targets, lse, g_log_p, g_lse))
    d_head, d_hidden = jax.lax.scan(step, jnp.zeros(head.shape, jnp.float32), pieces)
    return _join(d_hidden), d_head.astype(head.dtype), None


_token_log_probs.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_nats(hidden, head, targets, weights, z_loss, chunks):
    nats, squares = jax.lax.map(
        lambda args: _sums(*_softmax(args[0], head, args[1])[1:], args[2]),
        _pieces(chunks, hidden, targets, weights),
    )
    return nats.sum() + z_loss * squares.sum(), nats.sum(), squares.sum()


def _weighted_forward(hidden, head, targets, weights, z_loss, chunks):
    def piece(h, t, w):
        logits, log_p, lse = _softmax(h, head, t)
        p = jnp.exp(logits.astype(jnp.float32) - lse[..., None])
        hit = _hit(t, head.shape[1])
        slope = w * (1 + 2 * z_loss * lse)  # of the loss in each logsumexp
        d_logits = (slope[..., None] * p - jnp.where(hit, w[..., None], 0.0)).astype(h.dtype)
        d_hidden = jnp.einsum("btv,dv->btd", d_logits, head, preferred_element_type=h.dtype)
        return (
            *_sums(log_p, lse, w),
            d_hidden,
            jnp.einsum("btd,btv->dv", h, d_logits, preferred_element_type=jnp.float32),
        )

    if chunks == 1:
        nats, squares, d_hidden, d_head = piece(hidden, targets, weights)
    else:

        def step(d_head, args):
            *rest, more = piece(*args)
            return d_head + more, rest

        d_head, (nats, squares, d_hidden) = jax.lax.scan(
            step, jnp.zeros(head.shape, jnp.float32), _pieces(chunks, hidden, targets, weights)
        )
        nats, squares, d_hidden = nats.sum(), squares.sum(), _join(d_hidden)
    return (nats + z_loss * squares, nats, squares), (d_hidden, d_head)


def _weighted_backward(z_loss, chunks, residuals, gradients):
    d_hidden, d_head = residuals
    by = gradients[0]
    return by.astype(d_hidden.dtype) * d_hidden, (by * d_head).astype(d_hidden.dtype), None, None


_weighted_nats.defvjp(_weighted_forward, _weighted_backward)


def _softmax(hidden, head, targets):
    """(logits in hidden's type, log p(target), logsumexp) of a piece."""
    logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=hidden.dtype)
    wide = logits.astype(jnp.float32)
    lse = jax.nn.logsumexp(wide, axis=-1)
    # A sum with one term and not a look-up: on a CPU the loss and its gradient take 7 % less time.
    return logits, jnp.where(_hit(targets, head.shape[1]), wide, 0.0).sum(-1) - lse, lse


def _hit(targets, vocab):
    return jax.nn.one_hot(targets, vocab, dtype=jnp.bool_)


def _sums(log_p, lse, weights):
    return -(log_p * weights).sum(), (jnp.square(lse) * weights).sum()


def _pieces(chunks, *arrays):
    return tuple(_split(x, chunks) for x in arrays)


def _logits(hidden, head):
    return jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)


def _split(x, chunks):
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, x.shape[1] // chunks, *x.shape[2:]), 1, 0)


def _join(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
