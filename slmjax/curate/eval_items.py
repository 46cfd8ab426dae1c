"""Items of evaluation sets as passages of words, with names and numbers told apart."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64

from slmjax.errors import UserError, nearest
from slmjax.text.hashing import hash_words
from slmjax.text.records import DAMAGED, Fault, Source
from slmjax.text.sources import list_files, read_records

NUMBER = np.uint64(0)  # stands for the hash of any number
SENTENCE_ENDS = frozenset('.?!:;\n"“')


@dataclass(frozen=True)
class Passages:
    """Passages, all different, in one row of words: passage p is words[offsets[p] : offsets[p + 1]].

    `names` are words that another may stand for; `telling` ones are no names, numbers or single letters. `origins` has for each text that
    was read the position of its set, the line of its item and its passage (-1: too short).
    """

    words: UInt64[np.ndarray, " words"]
    names: Bool[np.ndarray, " words"]
    telling: Bool[np.ndarray, " words"]
    offsets: Int[np.ndarray, " bounds"]
    origins: Int[np.ndarray, "texts 3"]


def number_words(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Hashes of the words, where each begins and where it ends in the text; numbers in a row (also 1,000 or 3/4 - 2) are one NUMBER."""
    words, starts, ends = hash_words(text)
    first = _letters(text)[starts]
    words[(first >= ord("0")) & (first <= ord("9"))] = NUMBER
    keep = np.ones(len(words), bool)
    keep[1:] = (words[1:] != NUMBER) | (words[:-1] != NUMBER)
    last = np.append(np.flatnonzero(keep)[1:], len(words))[: keep.sum()] - 1
    return words[keep], starts[keep], ends[last]


def read_passages(sets: Mapping[str, Mapping[str, Any]], least: int) -> Passages:
    """Passages of {name: {"path", "fields"}}: of each item the first field alone, which asks, and all fields together.

    Those of fewer than `least` telling words are left out. The order of items does not change that of passages.
    Raises: UserError for a file or field that is not there, a damaged file, or a field that holds no text.
    """
    texts, owners = [], []
    for number, (name, settings) in enumerate(sets.items()):
        for line, fields in _read(name, settings):
            both = [fields[0], "\n".join(fields)][: len(fields)]
            texts += both
            owners += [(number, line)] * len(both)
    text = " a\n".join(texts)  # a word between two texts, so that numbers on both sides stay two
    words, starts, ends = number_words(text)
    names = _names(text, words, starts, ends)
    single = (ends - starts == 1) & (_letters(text)[starts] < 128)
    telling = ~(names | single | (words == NUMBER))
    bounds = np.cumsum([0, *(len(text) + 3 for text in texts)])
    begins, stops = np.searchsorted(starts, bounds[:-1]), np.searchsorted(starts, bounds[1:] - 3)
    told = np.append(0, np.cumsum(telling))
    alike: dict[bytes, list[int]] = {}
    for i in np.flatnonzero(told[stops] - told[begins] >= least).tolist():
        alike.setdefault(words[begins[i] : stops[i]].tobytes(), []).append(i)
    parts = [part for _, part in sorted(alike.items())]
    origins = np.full((len(texts), 3), -1)
    origins[:, :2] = np.array(owners, np.int64).reshape(-1, 2)
    for passage, part in enumerate(parts):
        origins[part, 2] = passage
    spans = [np.arange(begins[part[0]], stops[part[0]]) for part in parts]
    take = np.concatenate([np.zeros(0, np.int64), *spans])
    return Passages(
        words[take], names[take], telling[take], np.cumsum([0, *map(len, spans)]), origins
    )


def _read(name: str, settings: Mapping[str, Any]) -> Iterator[tuple[int, list[str]]]:
    """(line, text of each field) of each item; the lines of several files are counted on."""
    where, expected = (
        f"config.curate.evals.{name}",
        "expected a .jsonl file as path and the names of its text fields as fields",
    )
    for key in ("path", "fields"):
        if not isinstance(settings, Mapping) or not settings.get(key):
            raise UserError(f"{where}: {key} is missing; {expected}.")
    for key in settings:
        if key not in ("path", "fields"):
            raise UserError(
                f"{where} has no setting '{key}'; {expected}.{nearest(key, ('path', 'fields'))}"
            )
    path, fields = (
        [value] if isinstance(value, str) else value
        for value in (settings["path"], settings["fields"])
    )
    for value in (path, fields):
        if not isinstance(value, list | tuple) or not all(
            isinstance(part, str) and part for part in value
        ):
            raise UserError(f"{where} is {dict(settings)}; {expected}.")
    source = Source(where, tuple(path))
    before = 0
    for file in list_files(source):
        line = 0
        for item in read_records(file, source):
            line = item.line
            if isinstance(item, Fault):
                place = (
                    "is damaged"
                    if item.reason == DAMAGED
                    else f"has a fault in line {line}: {item.reason}"
                )
                raise UserError(
                    f"{where}: {file.path} {place} ({item.detail}); an evaluation set must be whole."
                )
            yield (
                before + line,
                [_text(item.fields, field, f"{file.path}, line {line}") for field in fields],
            )
        before += line


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    if field not in record:
        raise UserError(
            f"{place} has no field '{field}' (fields: {', '.join(record)}).{nearest(field, record)}"
        )
    values = record[field] if isinstance(record[field], list) else [record[field]]
    for value in values:
        if not isinstance(value, (str, int, float)):
            raise UserError(
                f"{place}: '{field}' holds {type(value).__name__}; expected text, a number or a list of them."
            )
    return "\n".join(map(str, values))


def _letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _names(text: str, words: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which words are names: with a capital inside a sentence, or at its beginning if they have one nine times in ten over all sets."""
    letters, letter = np.unique(_letters(text)[starts], return_inverse=True)
    capital = np.array([chr(code).isupper() for code in letters], bool)[letter]
    word = np.unique(words, return_inverse=True)[1]
    names = capital & (np.bincount(word, ~capital) * 9 <= np.bincount(word, capital))[word]
    for i in np.flatnonzero(capital & ~names).tolist():
        names[i] = i > 0 and SENTENCE_ENDS.isdisjoint(text[ends[i - 1] : starts[i]])
    return names
