"""Which mixtures are allowed: epoch caps and fixed shares, and mixtures drawn for proxies."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError, nearest

# Concentrations of the Dirichlet draws, from mixtures of one domain to mixtures like the prior
# (Liu et al. 2024, RegMix).
CONCENTRATIONS = np.geomspace(0.1, 5, 15)
TEMPER = 0.5  # power of the natural shares around which mixtures are drawn (RegMix)
FLOOR = 2e-4  # smaller weights of a proxy are 0 (RegMix)
MOST_DRAWS = 1000  # draws for each mixture that is asked for, before giving up
ROUNDING = 1e-12  # how far limits may be from allowing a sum of 1


class Limits(NamedTuple):
    """The smallest and largest weight of each domain [domains]; they allow a sum of 1."""

    lower: Float[np.ndarray, " domains"]
    upper: Float[np.ndarray, " domains"]


def mixture_limits(
    domains: Sequence[str],
    tokens: Sequence[float],
    budget: float,
    *,
    epochs: float = 4.0,
    fixed: Mapping[str, float] | None = None,
) -> Limits:
    """Return the limits of a mixture that reads no domain more often than `epochs` times.

    Args:
      tokens: unique tokens of each domain.
      budget: tokens of the target run, not of the proxies.
      epochs: 4 by default, up to which repeated tokens are worth about as much as new ones
        (Muennighoff et al. 2023).
      fixed: {domain: its share}.
    Raises: UserError for one domain, an unknown domain, a share that breaks its cap, and limits
      that no mixture keeps.
    """
    if len(domains) < 2:
        raise UserError(f"a mixture needs two domains or more; found {len(domains)}.")
    if not budget > 0 or not epochs > 0 or min(tokens) < 0 or len(tokens) != len(domains):
        raise UserError(
            f"expected tokens of {len(domains)} domains, and a budget and epochs above 0; found "
            f"{list(tokens)}, {budget:g} and {epochs:g}."
        )
    lower = np.zeros(len(domains))
    upper = np.minimum(epochs * np.asarray(tokens, float) / budget, 1.0)
    for name, share in (fixed or {}).items():
        if name not in domains:
            raise UserError(f"fixed share of '{name}': no such domain.{nearest(name, domains)}")
        number = list(domains).index(name)
        if not 0 <= share <= upper[number]:
            raise UserError(
                f"fixed share of '{name}': {share:g}; expected 0 to {upper[number]:.4g}, which is "
                f"{epochs:g} epochs of it."
            )
        lower[number] = upper[number] = share
    if upper.sum() < 1 - ROUNDING:
        raise UserError(
            f"no mixture keeps these limits: {epochs:g} epochs and the fixed shares allow "
            f"{upper.sum():.4g} of the run's {budget:,.0f} tokens; allow more epochs, add text or "
            "train on fewer tokens."
        )
    if lower.sum() > 1 + ROUNDING:
        raise UserError(f"the fixed shares sum to {lower.sum():.4g}; expected at most 1.")
    return Limits(lower, upper)


def within_limits(
    limits: Limits, mixtures: Float[np.ndarray, "m domains"]
) -> Float[np.ndarray, "m domains"]:
    """Return mixtures that keep the limits: all weights times one factor, then clipped.

    The factor makes the sum 1. This is the allowed mixture w with the smallest KL(w || mixture). A
    weight of 0 counts as a tiny one, because the others may be capped.
    """
    given = np.maximum(mixtures, 1e-9)
    # The sum grows with the factor, whose logarithm is found by bisection.
    low, high = np.full((len(given), 1), -50.0), np.full((len(given), 1), 50.0)
    for _ in range(80):
        middle = (low + high) / 2
        clipped = np.clip(given * np.exp(middle), limits.lower, limits.upper)
        too_small = clipped.sum(1, keepdims=True) < 1
        low, high = np.where(too_small, middle, low), np.where(too_small, high, middle)
    return np.clip(given * np.exp(high), limits.lower, limits.upper)


def dirichlet_mixtures(
    natural: Float[np.ndarray, " domains"], count: int, random: np.random.Generator
) -> Float[np.ndarray, "count domains"]:
    """Return random mixtures around tempered natural shares, each of a random concentration."""
    tempered = natural**TEMPER
    tempered = tempered / tempered.sum()
    concentrations = random.choice(CONCENTRATIONS, count)
    # Normalised gamma variables are Dirichlet. The smallest can all be 0 in floating point.
    gammas = random.standard_gamma(concentrations[:, None] * tempered) + 1e-300
    return gammas / gammas.sum(1, keepdims=True)


def proxy_mixtures(
    natural: Float[np.ndarray, " domains"], limits: Limits, count: int, seed: int
) -> Float[np.ndarray, "count domains"]:
    """Return different mixtures for proxies, a pure function of the arguments.

    Weights under FLOOR become 0 and the rest is scaled to sum to 1. Mixtures that break the limits
    are thrown away, and so are those that agree with another one in multiples of FLOOR.

    Args:
      natural: shares of the domains, such as those of their tokens; sum to 1.
      limits: fixed shares are kept, and the free domains share what is left.
    Source: Liu et al. 2024 (RegMix), whose own code does not scale after the floor.
    Raises: UserError where too few draws keep the limits.
    """
    random = np.random.default_rng(seed)
    free = limits.upper > limits.lower
    left = 1 - limits.lower[~free].sum()
    kept = np.empty((0, len(natural)))
    for _ in range(MOST_DRAWS // 10):
        draws = np.tile(limits.lower, (10 * count, 1))
        shares = dirichlet_mixtures(natural[free], 10 * count, random)
        shares[shares < FLOOR] = 0
        draws[:, free] = left * shares / shares.sum(1, keepdims=True)
        allowed = (draws <= limits.upper + ROUNDING).all(1)
        kept = np.concatenate([kept, draws[allowed]])
        _, first = np.unique(np.round(kept / FLOOR), axis=0, return_index=True)
        kept = kept[np.sort(first)]
        if len(kept) >= count:
            return kept[:count]
    raise UserError(
        f"only {len(kept)} of {MOST_DRAWS * count:,} random mixtures keep the limits; expected "
        f"{count}: allow more epochs, or ask for fewer mixtures."
    )
