"""Evaluation sets: which files they are, and their records as items of five formats."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError, nearest
from slmjax.evals.development_set import development_groups, question_id
from slmjax.evals.number_answers import number_answer
from slmjax.evals.word_problems import ANSWER_MARK
from slmjax.text.readers import read_documents, read_records
from slmjax.text.records import Fault, Source, SourceFile
from slmjax.text.source_files import file_kind, list_files
from slmjax.textbook import passages

# The kinds of items; each needs the model in another way.
CHOICES, CONTINUATIONS, QUESTIONS, TEXTS = "choices", "continuations", "questions", "texts"
# lm-eval ends the prompts of these sets so; the files hold them without.
ENDINGS = dict.fromkeys(("arc_easy", "arc_challenge", "piqa", "boolq"), "\nAnswer:")
GSM8K_TRAIN = "gsm8k_train"
GSM8K_DEV = "gsm8k_dev"  # 500 training problems, see development_set.py, unless a file is named so
TEXTBOOK = "textbook"
TEXTBOOK_QUESTIONS = 25  # of each kind
# Sets on which runs may be chosen: their figures are no looks at a test set.
NO_TESTS = (GSM8K_TRAIN, GSM8K_DEV, TEXTBOOK)


@dataclass(frozen=True)
class ChoiceItem:
    """Texts of which one is right.

    Attributes:
      pairs: (context, continuation) of each choice; the continuation's likelihood is scored.
      choices: the texts of the choices, whose lengths acc_norm divides by.
      gold: index of the right one.
      group: its phenomenon, "" for none.
    """

    pairs: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]
    gold: int
    group: str = ""


@dataclass(frozen=True)
class ContinuationItem:
    """A context, and the continuation that the model should write greedily."""

    context: str
    continuation: str


@dataclass(frozen=True)
class QuestionItem:
    """A question that the model answers in its own words.

    Attributes:
      answer: the worked answer.
      gold: the text of the right answer alone.
      group: its kind, "" for none.
      neighbours: number of its group of similar questions, which intervals resample as a whole;
        None: it is resampled alone.
    """

    question: str
    answer: str
    gold: str
    group: str = ""
    neighbours: int | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """The items of a set, all of one kind.

    Attributes:
      kind: one of the kinds above.
      items: ChoiceItem, ContinuationItem, QuestionItem, or texts.
      total: items of the whole set, of which `items` may be a part.
      path: its file, "" for the embedded textbook.
      sha256: of the file as stored.
    """

    name: str
    kind: str
    items: tuple[Any, ...]
    total: int
    path: str = ""
    sha256: str = ""

    @property
    def is_test(self) -> bool:
        """Whether a figure of it is a look at a test set."""
        return self.kind != TEXTS and self.name not in NO_TESTS


def read_set(name: str, files: Mapping[str, str], most: int, seed: int) -> EvaluationSet:
    """Return an evaluation set.

    Args:
      name: a key of `files`, "gsm8k_test", "gsm8k_train", "gsm8k_dev", "textbook", or the name of a
        file in $SLMJAX_SHARED/evals (../shared/data/evals unless set), without its ending.
      files: {name: path} of files of the user's own.
      most: items; of a larger set so many are drawn, the same for every model. 0: all.
      seed: of this draw.
    Raises: UserError for an unknown name, a file that is missing, of another format or without
      items, and a record that has a fault.
    """
    if name == TEXTBOOK and name not in files:
        return EvaluationSet(name, QUESTIONS, *_part(_textbook_items(), most, seed))
    drawn_for_development = name == GSM8K_DEV and name not in files
    stored_name = GSM8K_TRAIN if drawn_for_development else name
    path = files.get(name) or str(_shared_file(stored_name))
    source = Source(f"config.evaluate.tasks, {name}", (path,))
    stored = list_files(source, lambda line: None)
    if len(stored) != 1:
        raise UserError(f"{source.name}: '{path}' is {len(stored)} files; expected one.")
    file = stored[0]
    digest = hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
    kind, items = _items_of(name, file, source)
    if not items:
        raise UserError(f"{source.name}: {file.path} holds no item; {_expected()}.")
    if drawn_for_development:
        items = _development_items(items)
    return EvaluationSet(name, kind, *_part(items, most, seed), file.path, digest)


def shared_folder() -> Path:
    """Return $SLMJAX_SHARED, the folder that holds evals/ and gsm8k/; ../shared/data unless set."""
    return Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser()


def _shared_file(name: str) -> Path:
    """Return the file of a set. Raises: UserError naming the nearest set where there is none."""
    root = shared_folder()
    known = {path.name.partition(".")[0]: path for path in sorted(root.glob("evals/*.jsonl*"))}
    for part in ("test", "train"):
        for path in root.glob(f"gsm8k/{part}.jsonl*"):
            known[f"gsm8k_{part}"] = path
    if name in known:
        return known[name]
    names = [*known, TEXTBOOK]
    place = f"'{root}' (SLMJAX_SHARED) has no set '{name}' in evals/ or gsm8k/"
    advice = "or name a file of yours, such as --config.evaluate.files.mine=mine.jsonl"
    raise UserError(f"config.evaluate.tasks: {place}; {advice}.{nearest(name, names)}")


def _items_of(name: str, file: SourceFile, source: Source) -> tuple[str, list[Any]]:
    """Return the kind of a file's items, and the items."""
    if file_kind(file.path, source).format == ".txt":
        return TEXTS, _texts(file, source)
    kind, make, items = "", None, []
    for record in read_records(file, source):
        place = f"{source.name}: {file.path}, line {record.line}"
        if isinstance(record, Fault):
            problem = f"{record.reason} ({record.detail})"
            raise UserError(f"{place}: {problem}; an evaluation set must be whole.")
        if make is None:
            kind, make = _format_of(record.fields, place)
        try:
            items.append(make(record.fields, ENDINGS.get(name, "")))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            problem = f"is unlike the first record: {type(error).__name__} {error}"
            raise UserError(f"{place} {problem}; {_expected()}.") from error
    return kind, items


def _format_of(fields: Mapping[str, Any], place: str) -> tuple[str, Callable]:
    """Return the kind of items, and the function that makes one, for records with these fields."""
    for names, (kind, make) in FORMATS.items():
        if set(names) <= set(fields):
            return kind, make
    raise UserError(f"{place} has the fields {', '.join(fields)}; {_expected()}.")


def _expected() -> str:
    formats = " or ".join("{" + ", ".join(names) + "}" for names in FORMATS)
    return f"expected {formats}, or a .txt file"


def _part(items: list[Any], most: int, seed: int) -> tuple[tuple[Any, ...], int]:
    """Return (a seeded part of the items in their order, number of all items)."""
    total = len(items)
    if most == 0 or most >= total:
        return tuple(items), total
    drawn = np.random.default_rng(seed).choice(total, most, replace=False)
    return tuple(items[i] for i in sorted(drawn.tolist())), total


def _choices(fields: Mapping[str, Any], ending: str) -> ChoiceItem:
    query = _text(fields["query"])
    if ending:
        query = query.rstrip() + ending
    choices = tuple(map(_text, fields["choices"]))
    pairs = tuple((query, f" {choice}") for choice in choices)
    return ChoiceItem(pairs, choices, _gold(fields, len(choices)))


def _context_options(fields: Mapping[str, Any], ending: str) -> ChoiceItem:
    """Partial scoring: the same continuation after each context. Source: Trinh & Le 2018."""
    contexts = tuple(map(_text, fields["context_options"]))
    continuation = f" {_text(fields['continuation'])}"
    pairs = tuple((context, continuation) for context in contexts)
    return ChoiceItem(pairs, contexts, _gold(fields, len(contexts)))


def _sentence_pair(fields: Mapping[str, Any], ending: str) -> ChoiceItem:
    sentences = (_text(fields["sentence_good"]), _text(fields["sentence_bad"]))
    pairs = tuple(("", sentence) for sentence in sentences)
    return ChoiceItem(pairs, sentences, 0, fields.get("linguistics_term", ""))


def _continuation(fields: Mapping[str, Any], ending: str) -> ContinuationItem:
    return ContinuationItem(_text(fields["context"]), f" {_text(fields['continuation'])}")


def _question(fields: Mapping[str, Any], ending: str) -> QuestionItem:
    answer = _text(fields["answer"])
    _, mark, gold = answer.rpartition(ANSWER_MARK)
    if not mark or number_answer(answer) is None:
        raise ValueError(f"the answer has no number after '{ANSWER_MARK}'")
    return QuestionItem(_text(fields["question"]), answer, gold.strip())


def _document(fields: Mapping[str, Any], ending: str) -> str:
    return _text(fields["text"])


# {fields: (kind, function that makes an item)}. The first whose fields a record has counts.
FORMATS: dict[tuple[str, ...], tuple[str, Callable]] = {
    ("query", "choices", "gold"): (CHOICES, _choices),
    ("context_options", "continuation", "gold"): (CHOICES, _context_options),
    ("sentence_good", "sentence_bad"): (CHOICES, _sentence_pair),
    ("context", "continuation"): (CONTINUATIONS, _continuation),
    ("question", "answer"): (QUESTIONS, _question),
    ("text",): (TEXTS, _document),
}


def _texts(file: SourceFile, source: Source) -> list[str]:
    texts = []
    for document in read_documents(file, source):
        if isinstance(document, Fault):
            raise UserError(f"{source.name}: {file.path}: {document.reason} ({document.detail}).")
        texts.append(document.text)
    return texts


def _development_items(items: list[QuestionItem]) -> list[QuestionItem]:
    """Return those of GSM8K train that are for development, with their groups of neighbours."""
    groups = development_groups([item.question for item in items])
    chosen = []
    for item in items:
        group = groups.get(question_id(item.question))
        if group is not None:
            chosen.append(replace(item, neighbours=group))
    return chosen


def _textbook_items() -> list[QuestionItem]:
    """Return held-out questions of the embedded textbook, whose answer is "Answer: X."."""
    items = []
    for kind in passages.KINDS:
        for question in passages.questions(kind, TEXTBOOK_QUESTIONS, 0):
            items.append(QuestionItem(question.prompt, question.answer, question.answer, kind))
    return items


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def _gold(fields: Mapping[str, Any], count: int) -> int:
    gold = fields["gold"]
    if type(gold) is not int or not 0 <= gold < count or count < 2:
        raise ValueError(f"gold is {gold!r} of {count} choices")
    return gold
