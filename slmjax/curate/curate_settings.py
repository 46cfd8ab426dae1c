"""The settings of the stage `curate`: checked, and completed for each source."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from slmjax.config import CurateConfig
from slmjax.curate.language import language_rule
from slmjax.curate.minhash import Scheme, enough_bands
from slmjax.curate.quality import Rule, rule_named
from slmjax.errors import UserError, nearest
from slmjax.text.records import TEXT, Source

Settings = Mapping[str, Any]  # as `curate_settings` returns them
BY_SOURCE = ("rules", "languages")  # settings with a list of names for each source
OTHERS = "others"  # stands in these settings for all sources that they do not name


def curate_settings(chosen: CurateConfig) -> dict[str, Any]:
    """Return config.curate by field names, with the lists of `rules` and `languages` as tuples.

    Raises: UserError for rules and languages that are no lists of names, and for unknown rules.
    """
    settings = dataclasses.asdict(chosen)
    for field in BY_SOURCE:
        for source, value in settings[field].items():
            settings[field][source] = _names(f"{field}.{source}", value)
    # An unknown rule is refused here, and not only once the first document comes to it.
    for name in itertools.chain(*settings["rules"].values()):
        rule_named(name)
    return settings


def _names(field: str, value: Any) -> tuple[str, ...]:
    """Return the names in a command line's "one,two", or in a recipe's list or tuple.

    Raises: UserError for anything else.
    """
    words = value.split(",") if isinstance(value, str) else value
    is_list = isinstance(words, (list, tuple))
    if not is_list or not all(isinstance(word, str) for word in words):
        raise UserError(f"config.curate.{field} is {value!r}; expected names, such as one,two.")
    return tuple(word.strip() for word in words if word.strip())


def scheme_of(settings: Settings) -> Scheme:
    """Return the scheme of the MinHash sketches."""
    return Scheme(settings["ngram"], settings["bands"], settings["rows"])


def warnings(settings: Settings) -> list[str]:
    """Return a warning if the bands miss many pairs at the threshold, in a list, else none."""
    threshold = settings["threshold"]
    probability = float(scheme_of(settings).candidate_probability(threshold))
    # The defaults are FineWeb's, which find 77 % of the pairs at their threshold.
    usual = float(Scheme().candidate_probability(CurateConfig.threshold))
    if probability >= usual - 0.01:
        return []
    bands, rows = enough_bands(threshold, usual)
    return [
        f"with {settings['bands']} bands of {settings['rows']} rows, pairs of a similarity of "
        f"{threshold:g} (config.curate.threshold) are found with a probability of "
        f"{probability:.0%}; config.curate.bands={bands} and rows={rows} find {usual:.0%}."
    ]


def refuse_unknown_sources(settings: Settings, sources: Sequence[str]) -> None:
    """Raise a UserError where rules or languages name a source that is not there."""
    for field in BY_SOURCE:
        for name in settings[field]:
            if name not in (OTHERS, *sources):
                raise UserError(
                    f"config.curate.{field} names '{name}', but the sources are "
                    f"{', '.join(sources)}.{nearest(name, sources)}"
                )


def refuse_rules_of_conversations(settings: Settings, sources: Sequence[Source]) -> None:
    """Raise a UserError where rules or languages name a source of dialogues or pairs."""
    for field in BY_SOURCE:
        for source in sources:
            names = settings[field].get(source.name)
            if names and source.kind != TEXT:
                raise UserError(
                    f"config.curate.{field}.{source.name} is {','.join(names)}, but "
                    f"{source.where}.kind is '{source.kind}': {field} are for running text, kind "
                    f"'{TEXT}'; leave them out for this source."
                )


def conversation_notes(settings: Settings, sources: Sequence[Source]) -> list[str]:
    """Return a note for each source of dialogues or pairs: which steps it skips."""
    skipped = ["they are not normalised"]
    for field in BY_SOURCE:
        if names := settings[field].get(OTHERS):
            skipped.append(f"config.curate.{field}.{OTHERS} ({', '.join(names)}) is skipped")
    steps = ", ".join(skipped)
    notes = []
    for source in sources:
        if source.kind != TEXT:
            notes.append(
                f"Records of '{source.name}' (kind '{source.kind}') stay as they came or are "
                f"dropped: {steps}, and only equal ones are duplicates. Bytes are those of the "
                "answers."
            )
    return notes


def rules_of(settings: Settings, source: Source) -> tuple[str | Rule, ...]:
    """Return the rules of a source; the rule of its languages comes first.

    Dialogues and pairs have none.
    """
    if source.kind != TEXT:
        return ()
    rules = _names_for(settings["rules"], source.name)
    languages = _names_for(settings["languages"], source.name)
    if languages:
        return (language_rule(languages), *rules)
    return rules


def _names_for(by_source: Mapping[str, tuple[str, ...]], source: str) -> tuple[str, ...]:
    for_others = by_source.get(OTHERS, ())
    return by_source.get(source, for_others)
