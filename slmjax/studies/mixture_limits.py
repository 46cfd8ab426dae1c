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
    tokens: Sequence[float] | np.ndarray,
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
    amounts = np.asarray(tokens, float)
    valid = len(amounts) == len(domains) and np.isfinite(amounts).all() and (amounts >= 0).all()
    if not valid or not budget > 0 or not epochs > 0:
        raise UserError(
            f"expected tokens of {len(domains)} domains, and a budget and epochs above 0; found "
            f"{list(tokens)}, {budget:g} and {epochs:g}."
        )
    lower = np.zeros(len(domains))
    upper = np.minimum(epochs * amounts / budget, 1.0)
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
    limits = Limits(lower, upper)
    check_limits(limits, len(domains))
    return limits


def check_limits(limits: Limits, domains: int) -> None:
    """Raises: UserError for limits of another number of domains, or that no mixture keeps."""
    lower, upper = limits
    if len(lower) != domains or len(upper) != domains:
        raise UserError(f"expected limits of {domains} domains, found {len(lower)}.")
    if not (lower >= 0).all() or not (lower <= upper).all():
        raise UserError(f"expected limits 0 <= lower <= upper, found {lower} and {upper}.")
    if upper.sum() < 1 - ROUNDING:
        raise UserError(
            f"no mixture keeps the limits: the largest weights sum to {upper.sum():.4g}; allow "
            "more epochs or larger fixed shares, add text, or train on fewer tokens."
        )
    if lower.sum() > 1 + ROUNDING:
        raise UserError(
            f"no mixture keeps the limits: the smallest weights sum to {lower.sum():.4g}."
        )


def natural_shares(amounts: Sequence[float] | np.ndarray) -> Float[np.ndarray, " domains"]:
    """Return each domain's share of all tokens, from its tokens or its share.

    Raises: UserError for amounts that are negative, not finite or all 0.
    """
    given = np.asarray(amounts, float)
    if not np.isfinite(given).all() or (given < 0).any() or not given.sum():
        raise UserError(f"expected tokens or shares of 0 or more, not all 0; found {given}.")
    return given / given.sum()


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
    natural: Sequence[float] | np.ndarray, limits: Limits, count: int, seed: int
) -> Float[np.ndarray, "count domains"]:
    """Return different mixtures for proxies, a pure function of the arguments.

    Weights under FLOOR become 0 and the rest is scaled to sum to 1. Mixtures that break the limits
    are thrown away, and so are those that agree with another one in multiples of FLOOR.

    Args:
      natural: tokens of the domains, or their shares.
      limits: fixed shares are kept, and the free domains share what is left.
    Source: Liu et al. 2024 (RegMix), whose own code does not scale after the floor.
    Raises: UserError for invalid arguments, and where too few draws keep the limits.
    """
    natural = natural_shares(natural)
    check_limits(limits, len(natural))
    free = limits.upper > limits.lower
    if count < 1 or free.sum() < 2 or not natural[free].sum():
        raise UserError(
            "expected one mixture or more, of two domains or more that have text and no fixed "
            f"share; found {count} of {free.sum()}."
        )
    random = np.random.default_rng(seed)
    left = 1 - limits.lower[~free].sum()
    kept = np.empty((0, len(natural)))
    for _ in range(MOST_DRAWS // 10):
        draws = np.tile(limits.lower, (10 * count, 1))
        shares = dirichlet_mixtures(natural[free], 10 * count, random)
        shares[left * shares < FLOOR] = 0
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
