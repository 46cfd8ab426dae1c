"""Items of evaluation sets as passages of words, with names and numbers marked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

from slmjax.errors import UserError, nearest
from slmjax.text.hashing import hash_words
from slmjax.text.readers import read_records
from slmjax.text.records import DAMAGED, Fault, Source, SourceFile
from slmjax.text.source_files import list_files

NUMBER = np.uint64(0)  # in place of the hash of any number
SENTENCE_ENDS = frozenset('.?!:;\n"“')  # after these a capital does not make a name
SEPARATOR = " a\n"  # a word between two texts, so that numbers on both sides stay two
SETTINGS = ("path", "fields")  # of each evaluation set
# In errors about other settings.
EXPECTED = "expected a .jsonl file as path and the names of its text fields as fields"


Fields = Mapping[str, Any]
EvalSets = Mapping[str, Fields]  # {name: {"path": ..., "fields": ...}}
WordHashes = UInt64[np.ndarray, " words"]
WordPlaces = Int[np.ndarray, " words"]
WordFlags = Bool[np.ndarray, " words"]


class Words(NamedTuple):
    """The words of a text."""

    hashes: WordHashes
    starts: WordPlaces  # where each begins in the text, in characters
    ends: WordPlaces  # the character after its last one


@dataclass(frozen=True)
class Passages:
    """Passages, all different, in one row of words."""

    words: WordHashes  # passage p is words[offsets[p] : offsets[p + 1]]
    names: WordFlags  # which words are names: a copy may have other ones
    telling: WordFlags  # which words are no names, numbers or single letters
    offsets: Int[np.ndarray, " bounds"]
    # For each text that was read: the position of its set, the line of its item, and its passage
    # (-1: it has too few telling words).
    origins: Int[np.ndarray, "texts 3"]


def read_passages(sets: EvalSets, min_telling: int) -> Passages:
    """Return the passages of evaluation sets, without those of few telling words.

    An item gives up to two passages: its first field alone, which is the question, and all its
    fields together. The order of items does not change the order of passages.

    Args:
      min_telling: least number of words of a passage that are no names, numbers or single letters.
    Raises: UserError for a file or field that is not there, a damaged file, or a field without
      text.
    """
    texts, owners = _read_texts(sets)
    # All texts are cut into words together: whether a word is a name depends on all of them.
    joined_texts = SEPARATOR.join(texts)
    words = words_and_numbers(joined_texts)
    names = _names(joined_texts, words)
    is_letter = _single_letters(joined_texts, words)
    telling = ~(names | is_letter | (words.hashes == NUMBER))

    # Where the words of each text begin and stop in the row of all words. Lengths and bounds are in
    # characters.
    lengths = [len(text) + len(SEPARATOR) for text in texts]
    bounds = np.cumsum([0, *lengths])
    begins = np.searchsorted(words.starts, bounds[:-1])
    stops = np.searchsorted(words.starts, bounds[1:] - len(SEPARATOR))
    telling_before = np.append(0, np.cumsum(telling))
    telling_inside = telling_before[stops] - telling_before[begins]

    # Texts of the same words are one passage.
    texts_by_words: dict[bytes, list[int]] = {}
    for i in np.flatnonzero(telling_inside >= min_telling).tolist():
        own_words = words.hashes[begins[i] : stops[i]]
        texts_by_words.setdefault(own_words.tobytes(), []).append(i)
    origins = np.full((len(texts), 3), -1)
    origins[:, :2] = owners
    spans = [np.zeros(0, np.int64)]  # begins with an empty one, as offsets begin with 0
    # Sorted by the hashes of their words, so that the order of items does not matter.
    for passage, (_, equal_texts) in enumerate(sorted(texts_by_words.items())):
        origins[equal_texts, 2] = passage
        first = equal_texts[0]
        spans.append(np.arange(begins[first], stops[first]))
    kept = np.concatenate(spans)
    offsets = np.cumsum([len(span) for span in spans])
    return Passages(words.hashes[kept], names[kept], telling[kept], offsets, origins)


def _read_texts(
    sets: EvalSets,
) -> tuple[list[str], Int[np.ndarray, "texts 2"]]:
    """Return the texts of all items, and for each the position of its set and its item's line."""
    texts: list[str] = []
    owners: list[tuple[int, int]] = []
    for number, (name, settings) in enumerate(sets.items()):
        for line, fields in _read_items(name, settings):
            item_texts = [fields[0]]
            if len(fields) > 1:
                item_texts.append("\n".join(fields))
            texts += item_texts
            owners += [(number, line)] * len(item_texts)
    return texts, np.array(owners, np.int64).reshape(-1, 2)


def words_and_numbers(text: str) -> Words:
    """Return the words of a text; a row of numbers (also 1,000 or 3/4 - 2) is one word, NUMBER."""
    hashes, starts, ends = hash_words(text)
    first_character = _code_points(text)[starts]
    begins_with_digit = (first_character >= ord("0")) & (first_character <= ord("9"))
    hashes[begins_with_digit] = NUMBER
    # The first number of a row stays and ends where the last one does; the others are left out.
    keep = np.ones(len(hashes), bool)
    is_number = hashes == NUMBER
    keep[1:] = ~(is_number[1:] & is_number[:-1])
    kept = np.flatnonzero(keep)
    next_kept = np.append(kept[1:], len(hashes))
    last = next_kept[: len(kept)] - 1
    return Words(hashes[keep], starts[keep], ends[last])


def _code_points(text: str) -> UInt32[np.ndarray, " characters"]:
    # surrogatepass: half a surrogate pair is a character, too.
    data = text.encode("utf-32-le", "surrogatepass")
    return np.frombuffer(data, np.uint32)


def _single_letters(text: str, words: Words) -> WordFlags:
    """Return which words are one ASCII character; in other scripts one may be a whole word."""
    is_ascii = _code_points(text)[words.starts] < 128
    return (words.ends - words.starts == 1) & is_ascii


def _names(text: str, words: Words) -> WordFlags:
    """Return which words are names.

    A word with a capital is a name inside a sentence. At the beginning of one it is a name only if
    it has a capital nine times in ten over all sets.
    """
    first_characters = _code_points(text)[words.starts]
    # isupper is called once for each different character.
    characters, character = np.unique(first_characters, return_inverse=True)
    is_capital_character = np.array([chr(code).isupper() for code in characters], bool)
    has_capital = is_capital_character[character]
    # One number for each different word, and how often it is written in either way.
    _, word = np.unique(words.hashes, return_inverse=True)
    times_small = np.bincount(word, ~has_capital)
    times_capital = np.bincount(word, has_capital)
    is_mostly_capital = times_small * 9 <= times_capital
    names = has_capital & is_mostly_capital[word]
    # The others are names if no sentence ends before them. They are few: a loop will do.
    for i in np.flatnonzero(has_capital & ~names).tolist():
        if i > 0:
            between = text[words.ends[i - 1] : words.starts[i]]
            names[i] = SENTENCE_ENDS.isdisjoint(between)
    return names


def eval_files(sets: EvalSets) -> list[tuple[str, SourceFile]]:
    """Return (name of the set, file) of every file of evaluation sets, without reading any.

    Raises: UserError for invalid settings, and for a path without a file.
    """
    files = []
    for name, settings in sets.items():
        paths, _ = _checked(name, settings)
        for file in list_files(Source(f"config.curate.evals.{name}", paths)):
            files.append((name, file))
    return files


def _read_items(name: str, settings: Fields) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, text of each field) of each item.

    Where a set has several files, the lines of a file are numbered after those before it.
    """
    paths, fields = _checked(name, settings)
    source = Source(f"config.curate.evals.{name}", paths)
    lines_before = 0
    for file in list_files(source):
        line = 0  # stays 0 in an empty file
        for record in read_records(file, source):
            line = record.line
            if isinstance(record, Fault):
                _refuse_fault(source.name, file.path, record)
            place = f"{file.path}, line {line}"
            yield lines_before + line, [_text(record.fields, field, place) for field in fields]
        lines_before += line


def _checked(name: str, settings: Fields) -> list[tuple[str, ...]]:
    """Return [paths, fields] of a set. Raises: UserError for any other settings than these two."""
    where = f"config.curate.evals.{name}"
    for key in SETTINGS:
        if not isinstance(settings, Mapping) or not settings.get(key):
            raise UserError(f"{where}: {key} is missing; {EXPECTED}.")
    for key in settings:
        if key not in SETTINGS:
            hint = nearest(key, SETTINGS)
            raise UserError(f"{where} has no setting '{key}'; {EXPECTED}.{hint}")
    names = []
    for key in SETTINGS:
        value = settings[key]
        if isinstance(value, str):
            value = [value]
        if not _is_list_of_names(value):
            raise UserError(f"{where} is {dict(settings)}; {EXPECTED}.")
        names.append(tuple(value))
    return names


def _is_list_of_names(value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return all(isinstance(part, str) and part for part in value)


def _refuse_fault(where: str, path: Any, fault: Fault) -> None:
    place = f"has a fault in line {fault.line}: {fault.reason}"
    if fault.reason == DAMAGED:
        place = "is damaged"
    raise UserError(f"{where}: {path} {place} ({fault.detail}); an evaluation set must be whole.")


def _text(record: Fields, field: str, place: str) -> str:
    """Return the text of a field; the entries of a list, such as choices, are its lines.

    Args:
      place: file and line, for the errors.
    """
    if field not in record:
        raise UserError(
            f"{place} has no field '{field}' (fields: {', '.join(record)}).{nearest(field, record)}"
        )
    values = record[field]
    if not isinstance(values, list):
        values = [values]
    for value in values:
        if not isinstance(value, (str, int, float)):
            raise UserError(
                f"{place}: '{field}' holds {type(value).__name__}; "
                "expected text, a number or a list of them."
            )
    return "\n".join(map(str, values))
