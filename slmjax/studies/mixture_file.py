"""The file of a chosen mixture, which a recipe reads into config.data.phases.

    phases = [{"until": 1.0, "weights": read_weights("mixture.json")}]

It also holds all inputs of the choice, so that the choice and its figures can be made again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from slmjax.errors import UserError
from slmjax.studies.mixture_choice import MixtureChoice
from slmjax.studies.mixture_fit import SUM_ERROR, Proxies
from slmjax.studies.mixture_limits import Limits
from slmjax.text.files import write_atomic

FORMAT = 1


def write_weights(
    path: str | os.PathLike,
    choice: MixtureChoice,
    proxies: Proxies,
    limits: Limits,
    natural: Sequence[float] | np.ndarray,
) -> str:
    """Write a chosen mixture as JSON and return the hash of its inputs.

    Args:
      proxies, limits, natural: as given to `choose_mixture`.
    """
    inputs = {
        "domains": list(proxies.domains),
        "weights": proxies.weights.tolist(),
        "targets": list(proxies.targets),
        "losses": proxies.losses.tolist(),
        "lower": limits.lower.tolist(),
        "upper": limits.upper.tolist(),
        "natural": np.asarray(natural, float).tolist(),
        "settings": choice.settings,
    }
    intervals = None
    if choice.low is not None:
        pairs = np.stack([choice.low, choice.high], 1).tolist()
        intervals = dict(zip(proxies.domains, pairs, strict=True))
    content = {
        "format": FORMAT,
        "mixture": dict(zip(proxies.domains, choice.mixture.tolist(), strict=True)),
        "intervals": intervals,
        "verdict": choice.verdict,
        "sentence": choice.sentence,
        "better_than_natural": choice.better,
        "regressors": choice.scores,
        "inputs_hash": _hash(inputs),
        "inputs": inputs,
    }
    content["hash"] = _hash(content)
    write_atomic(epath.Path(path), content)
    return content["inputs_hash"]


def read_weights(path: str | os.PathLike) -> dict[str, float]:
    """Return {source: weight} of a file that `write_weights` wrote; the weights sum to 1.

    Raises: UserError for a file that is missing or no JSON, of another format, changed after it was
      written, or whose mixture does not sum to 1.
    """
    try:
        content = json.loads(epath.Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a file of mixture weights: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: expected a file of mixture weights of format {FORMAT}.")
    written = content.pop("hash", None)
    if written != _hash(content) or content.get("inputs_hash") != _hash(content.get("inputs")):
        raise UserError(
            f"{path} was changed after it was written; make it anew, or write the weights you want "
            "into data.phases."
        )
    mixture = content["mixture"]
    if min(mixture.values()) < 0 or abs(sum(mixture.values()) - 1) > SUM_ERROR:
        raise UserError(f"{path}: expected weights of 0 or more that sum to 1, found {mixture}.")
    return mixture


def _hash(content: Any) -> str:
    """Return the SHA-256 of JSON with sorted keys, in hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
