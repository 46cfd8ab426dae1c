"""The settings of the stage `curate`: checked, and completed for each source."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from slmjax.config import CurateConfig
from slmjax.curate.language import language_rule
from slmjax.curate.minhash import Scheme, enough_bands
from slmjax.curate.quality import Rule, known
from slmjax.errors import UserError, nearest

Settings = Mapping[str, Any]  # as `curate_settings` returns them
OTHERS = "others"  # in `rules` and `languages`: the sources that are not named


def curate_settings(chosen: CurateConfig) -> dict[str, Any]:
    """Return config.curate as the passes over the text read it.

    Raises: UserError for rules and languages that are no lists of names, and for unknown rules.
    """
    asked = dataclasses.asdict(chosen)
    for field in ("rules", "languages"):
        for source, value in asked[field].items():
            asked[field][source] = _names(f"{field}.{source}", value)
    # Now, not when the first document meets the rule.
    for rule in itertools.chain(*asked["rules"].values()):
        known(rule)
    return asked


def _names(field: str, value: Any) -> tuple[str, ...]:
    """Return names as a command line has them, "one,two", or as a recipe has them."""
    words = value.split(",") if isinstance(value, str) else value
    is_list = isinstance(words, (list, tuple))
    if not is_list or not all(isinstance(word, str) for word in words):
        raise UserError(f"config.curate.{field} is {value!r}; expected names, such as one,two.")
    return tuple(word.strip() for word in words if word.strip())


def scheme_of(asked: Settings) -> Scheme:
    """Return the scheme of the sketches."""
    return Scheme(asked["ngram"], asked["bands"], asked["rows"])


def warnings(asked: Settings) -> list[str]:
    """Return a warning where the bands miss many pairs at the threshold."""
    threshold = asked["threshold"]
    probability = float(scheme_of(asked).candidate_probability(threshold))
    # The defaults are FineWeb's, which find 77 % of the pairs at their threshold.
    usual = float(Scheme().candidate_probability(CurateConfig.threshold))
    if probability >= usual - 0.01:
        return []
    bands, rows = enough_bands(threshold, usual)
    return [
        f"with {asked['bands']} bands of {asked['rows']} rows, pairs of a similarity of "
        f"{threshold:g} (config.curate.threshold) are found with a probability of "
        f"{probability:.0%}; config.curate.bands={bands} and rows={rows} find {usual:.0%}."
    ]


def refuse_unknown_sources(asked: Settings, sources: Sequence[str]) -> None:
    """Raise a UserError where rules or languages name a source that is not there."""
    for field in ("rules", "languages"):
        for name in asked[field]:
            if name not in (OTHERS, *sources):
                raise UserError(
                    f"config.curate.{field} names '{name}', but the sources are "
                    f"{', '.join(sources)}.{nearest(name, sources)}"
                )


def rules_of(asked: Settings, source: str) -> tuple[str | Rule, ...]:
    """Return the rules of a source; the rule of its languages comes first."""
    chosen = []
    for field in ("rules", "languages"):
        for_others = asked[field].get(OTHERS, ())
        chosen.append(asked[field].get(source, for_others))
    rules, languages = chosen
    if languages:
        return (language_rule(languages), *rules)
    return rules
