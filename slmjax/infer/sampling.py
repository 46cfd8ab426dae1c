"""Draw the next token from float32 logits: greedy, or with temperature, top-k and top-p.

Settings are arrays with one entry for each row, and a row's draw does not depend on other rows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError


class Sampling(NamedTuple):
    """The settings of each row; every field is an array [B]."""

    temperature: Any  # float32; 0 is greedy
    top_k: Any  # int32; 0: draw among all tokens
    top_p: Any  # float32; 1: draw among all tokens
    seed: Any  # uint32
    row: Any  # int32: makes the draws of rows with the same seed differ


def sampling_of(
    rows: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> Sampling:
    """Return the same settings for `rows` rows.

    Args:
      temperature: 0 takes the likeliest token.
      top_k: draw among so many likeliest tokens; 0: all.
      top_p: draw among the likeliest tokens that hold this share of the mass; 1: all.
      seed: one for all rows, whose draws then differ by the row's number; or one for each row,
        which then draws as it would alone with that seed.
    Raises: UserError naming the value that makes no sense.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if isinstance(seed, int | np.integer):
        seeds = [seed] * rows
        row_numbers = np.arange(rows, dtype=np.int32)
    elif len(seed) == rows:
        seeds = seed
        row_numbers = np.zeros(rows, np.int32)
    else:
        expected = "give one number, or one for each prompt"
        raise UserError(f"seed has {len(seed)} values for {rows} prompts; {expected}.")
    return Sampling(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k, np.int32),
        np.full(rows, top_p, np.float32),
        np.array([int(value) % 2**32 for value in seeds], np.uint32),
        row_numbers,
    )


def check_sampling(*, temperature: float, top_k: int, top_p: float) -> None:
    """Raise UserError naming the value that makes no sense."""
    if not (math.isfinite(temperature) and temperature >= 0):
        expected = "it must be 0 (greedy) or a positive number"
        raise UserError(f"temperature is {temperature}; {expected}.")
    if not 0 <= top_k < 2**31:
        expected = "it must be 0 (all tokens) or the number of tokens to choose among"
        raise UserError(f"top_k is {top_k}; {expected}.")
    if not 0 < top_p <= 1:
        expected = "it must be more than 0 and at most 1 (all tokens)"
        raise UserError(f"top_p is {top_p}; {expected}.")


def sample(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    step: Int[Array, ""] | int,
) -> Int[Array, "B"]:
    """Return one token a row.

    It depends on the row's own logits, settings, seed, row number and the step; never on other
    rows.

    Args:
      logits: -inf for tokens that must not be drawn.
      step: of the completion, 0-based; it makes the steps' draws independent.
    """
    sampling = Sampling(*map(jnp.asarray, sampling))
    is_random = sampling.temperature > 0
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(restrict: Callable[[Array], Array]) -> Array:
        """Return random tokens, among those that `restrict` leaves, and greedy rows' likeliest."""

        def draw_row(row_logits, seed, row_number):
            # A fixed generator: draws do not depend on jax's default one.
            key = jax.random.key(seed, impl="threefry2x32")
            key = jax.random.fold_in(key, row_number)
            key = jax.random.fold_in(key, step)
            return jax.random.categorical(key, row_logits).astype(jnp.int32)

        scaled = restrict(_scaled(logits, sampling.temperature))
        drawn = jax.vmap(draw_row)(scaled, sampling.seed, sampling.row)
        return jnp.where(is_random, drawn, likeliest)

    def greedy() -> Array:
        return likeliest

    def draw_from_all() -> Array:
        return draw(lambda scaled: scaled)

    def draw_truncated() -> Array:
        return draw(lambda scaled: truncate(scaled, sampling.top_k, sampling.top_p))

    # Random bits and the sort of `truncate` take time: only the cheapest branch that all rows can
    # use is run.
    is_truncated = is_random & ((sampling.top_k > 0) | (sampling.top_p < 1))
    any_random = jnp.any(is_random).astype(jnp.int32)
    branch = jnp.where(jnp.any(is_truncated), 2, any_random)
    return jax.lax.switch(branch, (greedy, draw_from_all, draw_truncated))


def truncate(
    logits: Float[Array, "B V"],
    top_k: Int[Array, "B"],
    top_p: Float[Array, "B"],
) -> Float[Array, "B V"]:
    """Return the logits, with -inf outside of the top k tokens and their nucleus.

    The nucleus is the smallest set of likeliest tokens, among the top k, whose share of the mass is
    at least p. Of equal logits the lower token comes first. At least one token stays.
    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (nucleus), section 3.1.
    """
    # [B,V] by rank: 0 is the likeliest.
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[1])
    keep = (top_k[:, None] <= 0) | (rank < top_k[:, None])
    top = jnp.where(keep, ranked, -jnp.inf)
    share = jax.nn.softmax(top, axis=-1)
    # p = 1 is a case of its own: rounding can make the sum of the first shares 1 while small ones
    # are still to come.
    all_tokens = top_p[:, None] >= 1
    share_before = jnp.cumsum(share, axis=-1) - share  # of all likelier tokens
    keep &= all_tokens | (share_before < top_p[:, None]) | (rank == 0)
    # Back from ranks to tokens.
    nothing = jnp.zeros(logits.shape, bool)
    rows = jnp.arange(len(logits))[:, None]
    kept = nothing.at[rows, order].set(keep, unique_indices=True)
    return jnp.where(kept, logits, -jnp.inf)


def _scaled(logits: Float[Array, "B V"], temperature: Float[Array, "B"]) -> Float[Array, "B V"]:
    """Return logits divided by the temperature, up to a constant; greedy rows are not divided."""
    # The maximum is subtracted first: at any temperature, nothing becomes inf - inf.
    largest = logits.max(axis=-1, keepdims=True)
    shifted = logits - largest
    divisor = jnp.where(temperature > 0, temperature, 1.0)
    return shifted / divisor[:, None]
