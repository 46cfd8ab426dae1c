"""The next token from float32 logits: greedy, temperature, top-k, top-p. Settings are data, one a row, and a row's draw is its own."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError


class Sampling(NamedTuple):
    """How each row draws; every field is an array [B]."""

    temperature: Any  # float32; 0 is greedy
    top_k: Any  # int32; 0 is all
    top_p: Any  # float32; 1 is all
    seed: Any  # uint32
    row: Any  # int32: rows of one seed differ by it


def sampling_of(
    rows: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> Sampling:
    """The same settings for `rows` rows.

    Args:
      seed: of all rows, which then differ by their number; or a seed for each row, which then draws as it would alone with that seed.
    Raises: UserError naming the value that makes no sense.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    each = not isinstance(seed, int | np.integer)
    if each and len(seed) != rows:
        raise UserError(
            f"seed has {len(seed)} values for {rows} prompts; give one number, or one for each prompt."
        )
    return Sampling(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k, np.int32),
        np.full(rows, top_p, np.float32),
        np.array([int(s) % 2**32 for s in (seed if each else [seed] * rows)], np.uint32),
        np.zeros(rows, np.int32) if each else np.arange(rows, dtype=np.int32),
    )


def check_sampling(*, temperature: float, top_k: int, top_p: float) -> None:
    """Raises: UserError naming the value that makes no sense."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(
            f"temperature is {temperature}; it must be 0 (greedy) or a positive number."
        )
    if not 0 <= top_k < 2**31:
        raise UserError(
            f"top_k is {top_k}; it must be 0 (all tokens) or the number of tokens to choose among."
        )
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be more than 0 and at most 1 (all tokens).")


def sample(
    logits: Float[Array, "B V"], how: Sampling, step: Int[Array, ""] | int
) -> Int[Array, "B"]:
    """One token a row. A row's token depends on its own logits, settings, seed, row number and the step; never on other rows.

    Args:
      logits: -inf for what must not be drawn.
      step: of the completion, 0-based; it makes the steps' draws independent.
    """
    how = Sampling(*map(jnp.asarray, how))
    warm, likeliest = how.temperature > 0, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(allowed):
        def one(row, seed, number):
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)
            return jax.random.categorical(jax.random.fold_in(key, step), row).astype(jnp.int32)

        scaled = allowed(_scaled(logits, how.temperature))
        return jnp.where(warm, jax.vmap(one)(scaled, how.seed, how.row), likeliest)

    filtering = jnp.any(warm & ((how.top_k > 0) | (how.top_p < 1)))
    needed = jnp.where(
        filtering, 2, jnp.any(warm).astype(jnp.int32)
    )  # neither random bits nor a sort where no row asks for them
    branches = (
        lambda: likeliest,
        lambda: draw(lambda s: s),
        lambda: draw(lambda s: truncate(s, how.top_k, how.top_p)),
    )
    return jax.lax.switch(needed, branches)


def truncate(
    logits: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"]
) -> Float[Array, "B V"]:
    """-inf for all but the top k tokens, and of those for all but the nucleus: the fewest whose share of the mass is at least p.

    Of equal logits the lower token comes first. At least one token stays.
    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (nucleus), section 3.1.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[1])
    keep = (top_k[:, None] <= 0) | (rank < top_k[:, None])
    share = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
    # p = 1 is said apart: rounding can make the sum of the first shares 1 while small ones are still to come
    keep &= (
        (top_p[:, None] >= 1) | (jnp.cumsum(share, axis=-1) - share < top_p[:, None]) | (rank == 0)
    )
    kept = (
        jnp.zeros(logits.shape, bool)
        .at[jnp.arange(len(logits))[:, None], order]
        .set(keep, unique_indices=True)
    )
    return jnp.where(kept, logits, -jnp.inf)


def _scaled(logits, temperature):
    # the maximum goes first: however small the temperature, nothing becomes inf - inf
    above = logits - logits.max(axis=-1, keepdims=True)
    return above / jnp.where(temperature > 0, temperature, 1.0)[:, None]
