"""config.model.rope_scaling: rotary positions of layers without a window, for longer rows."""

from typing import NamedTuple

from jaxtyping import Array, Float

from slmjax.errors import UserError
from slmjax.ops.rope import rope_frequencies, yarn_frequencies

EXPECTED = "expected '', 'theta=40000' or 'yarn factor=4 trained=1024'"


class RopeScaling(NamedTuple):
    """What layers without a window do with positions.

    Attributes:
      theta: base of the frequencies in place of model.rope_theta; None: that one.
      factor, trained: of YaRN, see `yarn_frequencies`; a factor of 1 is none.
    """

    theta: float | None = None
    factor: float = 1.0
    trained: int = 0


def parse_rope_scaling(text: str) -> RopeScaling:
    """Return the scaling that a text describes. Raises: UserError where it does not parse."""
    words = text.split()
    is_yarn = words[:1] == ["yarn"]
    values: dict[str, float] = {}
    for word in words[is_yarn:]:
        name, _, value = word.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise _refusal(text) from None
    names = ["factor", "trained"] if is_yarn else ["theta"] if words else []
    if sorted(values) != names or len(words) != len(names) + is_yarn:
        raise _refusal(text)
    if not words:
        return RopeScaling()
    if not is_yarn:
        if not 1 < values["theta"] < float("inf"):
            raise _refusal(text)
        return RopeScaling(theta=values["theta"])
    factor, trained = values["factor"], values["trained"]
    if not 1 <= factor < float("inf") or trained != int(trained) or trained < 1:
        raise _refusal(text)
    return RopeScaling(factor=factor, trained=int(trained))


def scaled_frequencies(
    head_dim: int, theta: float, scaling: str
) -> tuple[Float[Array, " pairs"], float]:
    """Return the frequencies of a layer, and the scale of cosine and sine.

    Args:
      scaling: config.model.rope_scaling; "" for a layer with a window.
    """
    parsed = parse_rope_scaling(scaling)
    theta = parsed.theta or theta
    if parsed.factor == 1:
        return rope_frequencies(head_dim, theta), 1.0
    return yarn_frequencies(head_dim, theta, parsed.factor, parsed.trained)


def _refusal(text: str) -> UserError:
    return UserError(f"config.model.rope_scaling is '{text}'; {EXPECTED}.")
