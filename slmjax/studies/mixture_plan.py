"""The mixtures that a mixture study trains on, and the config of each of its runs."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.config import Config, MixtureConfig
from slmjax.data.prepared import Prepared
from slmjax.errors import UserError, nearest
from slmjax.studies.mixture_file import read_weights
from slmjax.studies.mixture_limits import Limits, mixture_limits, natural_shares, proxy_mixtures
from slmjax.studies.study_runs import StudyRun, run_tokens
from slmjax.studies.text_study import domain_tokens, read_in_part, scored_sources

# A mixture's name is part of the names of its runs' folders.
NAME = r"[A-Za-z0-9_][A-Za-z0-9_. -]*"


class MixturePlan(NamedTuple):
    """What a mixture study trains.

    domains: sources that are mixed; the others are only scored.
    tokens: of each domain.
    budget: tokens of the run that the mixture is for.
    limits: of the mixtures.
    mixtures: {name: weight of each domain}.
    basket: sources whose held-out text is scored.
    """

    domains: tuple[str, ...]
    tokens: Float[np.ndarray, " domains"]
    budget: int
    limits: Limits
    mixtures: dict[str, Float[np.ndarray, " domains"]]
    basket: tuple[str, ...]

    @property
    def natural(self) -> Float[np.ndarray, " domains"]:
        """Each domain's share of the tokens."""
        return natural_shares(self.tokens)


def plan_mixtures(config: Config, prepared: Prepared) -> MixturePlan:
    """Return what a study trains.

    Raises: UserError for fewer than two domains, an unknown source, a source without held-out text
      in the basket, and limits that no mixture keeps.
    """
    settings = config.mixture
    by_domain = domain_tokens(config, prepared)
    domains = list(by_domain)
    tokens = np.array(list(by_domain.values()))
    of_proxy = run_tokens(config)
    budget = settings.target_tokens or of_proxy
    if budget < of_proxy:
        raise UserError(
            f"config.mixture.target_tokens is {budget:,}; expected at least the {of_proxy:,} "
            "tokens of a proxy."
        )
    limits = mixture_limits(
        domains, tokens.tolist(), budget, epochs=settings.max_epochs, fixed=settings.fixed
    )
    mixtures: dict[str, np.ndarray] = {}
    # The others are compared with the first one: the natural mixture, where it is among them.
    for name in sorted(settings.mixtures, key=lambda name: settings.mixtures[name] != "natural"):
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"config.mixture.mixtures: '{name}' is no name of a mixture; use letters, digits, "
                "spaces, '_', '-' and '.'."
            )
        mixtures[name] = mixture_of(name, settings.mixtures[name], domains, tokens)
    if not mixtures:
        drawn = proxy_mixtures(natural_shares(tokens), limits, settings.proxies, config.seed)
        digits = len(str(len(drawn) - 1))
        for number, mixture in enumerate(drawn):
            mixtures[f"mixture-{number:0{digits}}"] = mixture
    basket = scored_sources("config.mixture.basket", settings.basket, prepared)
    return MixturePlan(tuple(domains), tokens, budget, limits, mixtures, basket)


def mixture_of(
    name: str, given: Any, domains: list[str], tokens: Float[np.ndarray, " domains"]
) -> Float[np.ndarray, " domains"]:
    """Return the weights of one of config.mixture.mixtures; they sum to 1.

    Raises: UserError for an unknown source, and weights that are negative or all 0.
    """
    where = f"config.mixture.mixtures.{name}"
    if given == "natural":
        return natural_shares(tokens)
    if given == "uniform":
        return np.full(len(domains), 1 / len(domains))
    if isinstance(given, str):
        given = read_weights(given)
    if not isinstance(given, Mapping):
        raise UserError(
            f"{where} is {given!r}; expected {{source: weight}}, a weights file, natural or "
            "uniform."
        )
    for source in given:
        if source not in domains:
            raise UserError(
                f"{where} has a weight for '{source}', but the sources that are mixed are "
                f"{', '.join(domains)}.{nearest(source, domains)}"
            )
    try:
        weights = np.array([float(given.get(source, 0)) for source in domains])
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is {dict(given)}; expected numbers as weights.") from error
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
        raise UserError(f"{where} is {dict(given)}; expected weights of 0 or more, not all 0.")
    return weights / weights.sum()


def proxy_runs(config: Config, plan: MixturePlan) -> list[StudyRun]:
    """Return the runs of a study: each mixture with each seed."""
    runs = []
    for name, mixture in plan.mixtures.items():
        for seed in range(config.mixture.seeds):
            runs.append(StudyRun(f"{name}-{seed}", proxy_config(config, plan, mixture, seed)))
    return runs


def proxy_config(
    config: Config, plan: MixturePlan, mixture: Float[np.ndarray, " domains"], seed: int
) -> Config:
    """Return the config of a run on a mixture.

    A proxy that is shorter than the run that the mixture is for reads only a part of every domain,
    so that it repeats the part as often as that run repeats the whole.

    Args:
      seed: 0 for the first run; config.seed is added.
    """
    fraction = run_tokens(config) / plan.budget
    # The weights are those of the phase.
    sources = read_in_part(config.data.sources, plan.domains, fraction, weight=None)
    weights = dict(zip(plan.domains, mixture.tolist(), strict=True))
    phases = ({"until": 1.0, "weights": weights},)
    return dataclasses.replace(
        config,
        stage="train",
        seed=config.seed + seed,
        data=dataclasses.replace(config.data, sources=sources, phases=phases),
        # Its defaults: a run has no part of the study's settings.
        mixture=MixtureConfig(),
    )
