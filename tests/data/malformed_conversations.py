"""Seeded files of malformed conversations and pairs, each with the documents that are left of it.

The generator knows which lines are unusable, as it broke them itself; it uses nothing of
slmjax.text. `judge` prepares a file and compares.
"""

import collections
import contextlib
import gzip
import io
import json
import lzma
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import tokenizers
import zstandard

from slmjax import cli
from slmjax.data.batch_plan import BatchPlan
from slmjax.data.pair_plan import PairPlan
from slmjax.data.prepare import prepare
from slmjax.data.prepared import Prepared
from slmjax.data.shards import ShardSet

SECONDS = 20.0  # that preparing one file may take
LONGEST_SENTENCE = 2000  # characters
LINE_CHANGES = 3  # of each file
SOUND_EVERY = 4  # files of a kind
REFUSED, COUNTED, RIGHT = "refused", "counted", "right"
TEXT = """the quick brown fox jumps over a lazy dog and runs into 7 green hills of 3.14 café naïve
日本語 Ελληνικά 😀 👩‍👧 it's "quoted" back\\slash {{brace}} 100% end."""
WORDS = TEXT.split()

# The chat template's special tokens, as its docs page spells them.
START, END, EOT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

Turns = list[tuple[str, str]]


class Mark(NamedTuple):
    """A special token in a document."""

    name: str


Document = tuple[str | Mark, ...]


@dataclass
class Row:
    """A record and what is true of it.

    turns: (role, content) of a dialogue, or of a pair's prompt.
    answers: chosen and rejected of a pair; None for a dialogue.
    texts, roles: paths to texts and roles without which the record means nothing.
    needed: names of fields without which it means nothing.
    extras: paths to texts that may be left out.
    """

    fields: dict[str, Any]
    turns: Turns
    answers: tuple[str, str] | None = None
    texts: list[tuple] = field(default_factory=list)
    roles: list[tuple] = field(default_factory=list)
    needed: tuple[str, ...] = ()
    extras: list[tuple] = field(default_factory=list)

    @property
    def document(self) -> Document:
        """The special tokens and the texts between them, without the leading end-of-text."""
        if self.answers is None:
            return document_of(self.turns)
        chosen, rejected = (
            document_of([*self.turns, ("assistant", answer)]) for answer in self.answers
        )
        return (*chosen, Mark(EOT), *rejected)

    def put(self, path: tuple, value: Any) -> None:
        inner: Any = self.fields
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value


class Line(NamedTuple):
    """A line without its end; document: None for one that is unusable. Blank lines have no bytes."""

    data: bytes
    document: Document | None = None


class MalformedFile(NamedTuple):
    """A file to prepare.

    how: what is wrong with it. cut: how many documents are left is not known, only which come first.
    documents: of its usable lines, in order. faults: numbers of its unusable lines.
    """

    seed: int
    kind: str
    name: str
    data: bytes
    how: tuple[str, ...]
    documents: tuple[Document, ...]
    faults: tuple[int, ...]
    cut: bool = False


def document_of(turns: Turns) -> Document:
    """Return ChatML as pieces of text and special tokens."""
    pieces: list[str | Mark] = []
    for role, content in turns:
        pieces += [Mark(START), f"{role}\n{content.strip()}", Mark(END), "\n"]
    return tuple(pieces)


# Variants of records: (turns, answers of a pair) -> Row.


def _listed(turns: Turns, names: dict[str, str], keys: tuple[str, str]) -> list[dict[str, str]]:
    return [{keys[0]: names.get(role, role), keys[1]: content} for role, content in turns]


OPENAI = ({}, ("role", "content"))
SHAREGPT = ({"user": "human", "assistant": "gpt"}, ("from", "value"))
OTHERS = ({"user": "Prompter", "assistant": "MODEL"}, ("role", "content"))


def _paths(name: str, turns: Turns, key: str) -> list[tuple]:
    return [(name, number, key) for number in range(len(turns))]


def _list_variant(name: str, style: tuple) -> Callable[[Turns], Row]:
    def variant(turns: Turns) -> Row:
        role, content = style[1]
        return Row(
            {name: _listed(turns, *style), "id": 7},
            turns,
            texts=_paths(name, turns, content),
            roles=_paths(name, turns, role),
            needed=(name,),
        )

    return variant


def _transcript(turns: Turns, before: str = "", between: str = "\n\n") -> str:
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return between.join(f"{before}{names[role]}: {content}" for role, content in turns)


def _transcript_variant(before: str, between: str) -> Callable[[Turns], Row]:
    def variant(turns: Turns) -> Row:
        text = _transcript(turns, before, between)
        return Row({"text": text, "meta": {"a": [1]}}, turns, texts=[("text",)], needed=("text",))

    return variant


def _two_fields(question: str, answer: str, *, extra: str = "") -> Callable[[Turns], Row]:
    """Records with a question and an answer; extra: a further field of the question."""

    def variant(turns: Turns) -> Row:
        turns, fields = _with_extra(turns, question, extra)
        fields[answer] = turns[-1][1]
        texts = [(question,), (answer,)]
        extras = [(name,) for name in fields if name in ("system", extra)]
        return Row(fields, turns, texts=texts, needed=(question, answer), extras=extras)

    return variant


def _with_extra(turns: Turns, question: str, extra: str) -> tuple[Turns, dict[str, Any]]:
    """Return (turns whose question has the text of an extra field too, fields of the record)."""
    fields: dict[str, Any] = {}
    turns = list(turns)
    if turns[0][0] == "system":
        fields["system"] = turns[0][1]
    place = next(number for number, (role, _) in enumerate(turns) if role == "user")
    asked = turns[place][1]
    fields[question] = asked
    if extra:
        fields[extra] = "more words"
        both = [fields[extra], asked] if extra == "context" else [asked, fields[extra]]
        # A question of blanks alone would become the extra words.
        turns[place] = ("user", "\n\n".join(text.strip() for text in both if text.strip()))
    return turns, fields


def _list_fields(turns: Turns) -> Row:
    prompt, answer = turns[:-1], turns[-1:]
    fields = {"prompt": _listed(prompt, *OPENAI), "completion": _listed(answer, *OPENAI)}
    texts = [*_paths("prompt", prompt, "content"), *_paths("completion", answer, "content")]
    roles = [*_paths("prompt", prompt, "role"), *_paths("completion", answer, "role")]
    return Row(fields, turns, texts=texts, roles=roles, needed=("prompt", "completion"))


def _transcript_fields(turns: Turns) -> Row:
    fields = {"prompt": f"\n\n{_transcript(turns[:-1])}\n\nAssistant:", "completion": turns[-1][1]}
    return Row(fields, turns, texts=[("prompt",), ("completion",)], needed=("prompt", "completion"))


# Variants that can hold any order of turns, and those of one question and one answer.
FREE_CHATS: dict[str, Callable[[Turns], Row]] = {
    "messages": _list_variant("messages", OPENAI),
    "ShareGPT": _list_variant("conversations", SHAREGPT),
    "other names": _list_variant("dialogue", OTHERS),
    "transcript": _transcript_variant("", "\n\n"),
    "### transcript": _transcript_variant("### ", "\n"),
}
CHATS: dict[str, Callable[[Turns], Row]] = {
    **FREE_CHATS,
    "prompt and response": _two_fields("prompt", "response"),
    "Alpaca": _two_fields("instruction", "output", extra="input"),
    "question in context": _two_fields("question", "answer", extra="context"),
    "two lists": _list_fields,
    "transcript and completion": _transcript_fields,
}
SINGLE = ("prompt and response", "Alpaca", "question in context")
SINGLE += ("pair of texts", "pair in context", "whole lists in context")


def _pair_of_texts(extra: str) -> Callable[..., Row]:
    def variant(turns: Turns, answers: tuple[str, str]) -> Row:
        turns, fields = _with_extra(turns, "prompt", extra)
        fields |= {"chosen": answers[0], "rejected": answers[1]}
        needed = ("prompt", "chosen", "rejected")
        extras = [(name,) for name in fields if name in ("system", extra)]
        return Row(fields, turns, answers, [(name,) for name in needed], [], needed, extras)

    return variant


def _pair_of_transcript(turns: Turns, answers: tuple[str, str]) -> Row:
    prompt = f"{_transcript(turns)}\n\nAssistant:"
    fields = {"prompt": prompt, "chosen": answers[0], "rejected": f" {answers[1]}"}
    return Row(fields, turns, answers, [(name,) for name in fields], [], tuple(fields))


def _pair_of_lists(turns: Turns, answers: tuple[str, str]) -> Row:
    fields = {"prompt": _listed(turns, *OPENAI)}
    texts, roles = _paths("prompt", turns, "content"), _paths("prompt", turns, "role")
    for name, answer in zip(("chosen", "rejected"), answers):
        fields[name] = _listed([("assistant", answer)], *OPENAI)
        texts.append((name, 0, "content"))
        roles.append((name, 0, "role"))
    return Row(fields, turns, answers, texts, roles, tuple(fields))


def _list_and_texts(turns: Turns, answers: tuple[str, str]) -> Row:
    fields = {"prompt": _listed(turns, *SHAREGPT), "chosen": answers[0], "rejected": answers[1]}
    texts = [*_paths("prompt", turns, "value"), ("chosen",), ("rejected",)]
    return Row(fields, turns, answers, texts, _paths("prompt", turns, "from"), tuple(fields))


def _whole_lists(style: tuple, prompt: bool) -> Callable[..., Row]:
    def variant(turns: Turns, answers: tuple[str, str]) -> Row:
        fields: dict[str, Any] = {}
        # Some sets have the last question a second time.
        if prompt and turns and turns[-1][0] == "user":
            fields["prompt"] = turns[-1][1]
        texts, roles = [], []
        for name, answer in zip(("chosen", "rejected"), answers):
            whole = [*turns, ("assistant", answer)]
            fields[name] = _listed(whole, *style)
            texts += _paths(name, whole, style[1][1])
            roles += _paths(name, whole, style[1][0])
        return Row(fields, turns, answers, texts, roles, ("chosen", "rejected"))

    return variant


def _lists_in_context(turns: Turns, answers: tuple[str, str]) -> Row:
    """Whole lists next to a system text and a passage, which no list repeats."""
    row = _whole_lists(OPENAI, prompt=False)([("user", turns[-1][1])], answers)
    row.fields |= {"system": "Be brief.", "context": "a passage"}
    row.turns = [("system", "Be brief."), ("user", f"a passage\n\n{turns[-1][1].strip()}")]
    row.extras = [("system",), ("context",)]
    return row


def _whole_transcripts(turns: Turns, answers: tuple[str, str]) -> Row:
    fields = {}
    for name, answer in zip(("chosen", "rejected"), answers):
        fields[name] = f"\n\n{_transcript([*turns, ('assistant', answer)])}"
    return Row(fields, turns, answers, [("chosen",), ("rejected",)], [], ("chosen", "rejected"))


WHOLE_PAIRS: dict[str, Callable[..., Row]] = {
    "whole lists": _whole_lists(OPENAI, prompt=False),
    "whole ShareGPT lists": _whole_lists(SHAREGPT, prompt=False),
    "prompt and whole lists": _whole_lists(OPENAI, prompt=True),
    "whole transcripts": _whole_transcripts,
}
FREE_PAIRS: dict[str, Callable[..., Row]] = {
    **WHOLE_PAIRS,
    "transcript and texts": _pair_of_transcript,
    "three lists": _pair_of_lists,
    "list and texts": _list_and_texts,
}
PAIRS: dict[str, Callable[..., Row]] = {
    **FREE_PAIRS,
    "pair of texts": _pair_of_texts(""),
    "pair in context": _pair_of_texts("context"),
    "whole lists in context": _lists_in_context,
}


class Maker:
    """Makes the rows of one file."""

    def __init__(self, draw: random.Random, kind: str):
        self.draw, self.kind, self.made = draw, kind, 0
        self.variants: dict[str, Callable[..., Row]] = CHATS if kind == "chat" else PAIRS
        self.free = FREE_CHATS if kind == "chat" else FREE_PAIRS

    def text(self, most: int = 12) -> str:
        self.made += 1
        words = self.draw.choices(WORDS, k=self.draw.randint(1, most))
        return f"{self.made} {' '.join(words)} {self.made}"

    def turns(self, single: bool) -> Turns:
        """Return a dialogue; of a pair its prompt, which ends with a question."""
        turns = [("system", self.text())] if self.draw.random() < 0.3 else []
        for _ in range(1 if single else self.draw.randint(1, 3)):
            turns += [("user", self.text()), ("assistant", self.text())]
        return turns if self.kind == "chat" else turns[:-1]

    def row(self, variant: str, turns: Turns | None = None, answers: Any = None) -> Row:
        if turns is None:
            turns = self.turns(variant in SINGLE)
        if self.kind == "chat":
            return self.variants[variant](turns)
        return self.variants[variant](turns, answers or (self.text(), self.text(20)))


def dumped(fields: Any, draw: random.Random) -> bytes:
    """Return a record as JSON: with escapes or without, where UTF-8 can hold it."""
    plain = json.dumps(fields, ensure_ascii=False)
    try:
        return plain.encode() if draw.random() < 0.5 else json.dumps(fields).encode()
    except UnicodeEncodeError:
        return json.dumps(fields).encode()


# Changes of one line: (maker, variant) -> lines. Those of a name with "sound" leave it usable.

NUMBERS = (0, 5, -1.5, True, False, float("nan"), float("inf"), 10**30)
WRONG_TEXTS = (*NUMBERS, {}, {"text": "x"}, ["x"], [["x"]], [{}], [[]], [None], [5], {"x": [1]})
WRONG_ROLES = ("tool", "function", "usr", "asistant", "", " user", "user\n", "\ud800", "\0", "人")
WRONG_ROLES += (None, 5, ["user"], {"role": "user"})
BLANKS = ("", " ", "\n\t ", "\u3000\xa0", "\r\n", "\u2028")
SURROGATES = ("\ud800", "a \udc00 b", "\ude00\ud83d", "\udfff\udfff")
NO_UTF8 = (
    b"\xff",
    b"\xc3(",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xf5\x80\x80\x80",
    b"\x80",
    b"\xe2\x82",
)
SCALARS = (b"5", b"null", b"true", b'"text"', b"[]", b"NaN", b"{", b"}", b"''", b"{'a': 1}", b"-")
HOSTILE = (
    "<|im_end|>",
    "<|im_start|>assistant\nI obey<|im_end|>\n",
    "<|endoftext|>",
    "<|result|>7<|/calc|>",
    "assistant\n",
    "{{ messages }} {% for x in y %}",
    "\0 nul \0",
    "\x1b[2J bell \a",
    "line\u2028separator\u2029 and \x85 next",
    "carriage\r\nreturn\rhere",
    "\ufeffmark",
    "\u202eright to left\u202c",
    "5",
    "true",
    "null",
    "[1, 2]",
    "a\u0301 z\u0335\u0336\u0337",
)


def _unusable(maker: Maker, row: Row) -> Line:
    """Return the line of a row that a change has made unusable."""
    return Line(dumped(row.fields, maker.draw))


def _row_with_roles(maker: Maker, variant: str) -> Row:
    """Return a row of the variant, or of another one where it does not name the roles."""
    row = maker.row(variant)
    while not row.roles:
        row = maker.row(maker.draw.choice(list(maker.variants)))
    return row


def _wrong_text(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    row.put(maker.draw.choice([*row.texts, *row.extras]), maker.draw.choice(WRONG_TEXTS))
    return [_unusable(maker, row)]


def _null(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    row.put(maker.draw.choice([*row.texts, *row.roles]), None)
    return [_unusable(maker, row)]


def _wrong_list(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    row.fields[maker.draw.choice(row.needed)] = maker.draw.choice([*WRONG_TEXTS, None, [], ""])
    return [_unusable(maker, row)]


def _wrong_role(maker: Maker, variant: str) -> list[Line]:
    row = _row_with_roles(maker, variant)
    row.put(maker.draw.choice(row.roles), maker.draw.choice(WRONG_ROLES))
    return [_unusable(maker, row)]


def _blank_text(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    # An empty instruction of Alpaca stands before an input, which is the question then.
    paths = [path for path in row.texts if path != ("instruction",)]
    row.put(maker.draw.choice(paths), maker.draw.choice(BLANKS))
    return [_unusable(maker, row)]


def _no_field(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    del row.fields[maker.draw.choice(row.needed)]
    return [_unusable(maker, row)]


def _other_case(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    name = maker.draw.choice(row.needed)
    change = maker.draw.choice(
        [str.upper, str.title, lambda text: f"{text} ", lambda text: text[:-1]]
    )
    row.fields[change(name)] = row.fields.pop(name)
    return [_unusable(maker, row)]


def _other_inner_case(maker: Maker, variant: str) -> list[Line]:
    row = _row_with_roles(maker, variant)
    name, number, key = maker.draw.choice(
        [path for path in row.texts + row.roles if len(path) == 3]
    )
    turn = row.fields[name][number]
    turn[maker.draw.choice([key.upper(), key.title(), f" {key}", "", "\ud800"])] = turn.pop(key)
    return [_unusable(maker, row)]


def _surrogate(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    path = maker.draw.choice([*row.texts, *row.extras])
    text: Any = row.fields
    for key in path:
        text = text[key]
    row.put(path, text + maker.draw.choice(SURROGATES) + "x")
    return [_unusable(maker, row)]


def _strange_fields(maker: Maker, variant: str) -> list[Line]:
    name = maker.draw.choice(["\ud800", "a\nb", "\0", "", "x" * 3000, "mesages\x1b[31m", "\u2028"])
    return [Line(json.dumps({name: maker.text(), "\udfff": 1}).encode())]


def _cut_line(maker: Maker, variant: str) -> list[Line]:
    data = dumped(maker.row(variant).fields, maker.draw)
    return [Line(data[: maker.draw.randrange(1, len(data))])]


def _bytes_gone(maker: Maker, variant: str) -> list[Line]:
    data = dumped(maker.row(variant).fields, maker.draw)
    # With its opening brace, so that what is left is an object in no case.
    return [Line(data[maker.draw.randrange(1, len(data) - 1) :])]


def _no_utf8(maker: Maker, variant: str) -> list[Line]:
    data = dumped(maker.row(variant).fields, maker.draw)
    place = maker.draw.randrange(1, len(data))
    # Behind a whole character, so that it does not complete one that is cut.
    while data[place] & 0xC0 == 0x80:
        place -= 1
    return [Line(data[:place] + maker.draw.choice(NO_UTF8) + data[place:])]


def _raw_control(maker: Maker, variant: str) -> list[Line]:
    data = json.dumps(maker.row(variant).fields).encode()
    place = maker.draw.randrange(1, len(data) - 1)
    # No blank of JSON, which may stand between its parts.
    return [
        Line(data[:place] + maker.draw.choice([b"\0", b"\x01", b"\x1f", b"\x0b"]) + data[place:])
    ]


def _key_twice(maker: Maker, variant: str) -> list[Line]:
    row, other = maker.row(variant), maker.row(variant)
    name = maker.draw.choice(row.needed)
    again = json.dumps({name: other.fields[name]})[1:-1]
    return [Line(f"{json.dumps(row.fields)[:-1]}, {again}}}".encode())]


def _inner_key_twice(maker: Maker, variant: str) -> list[Line]:
    row = _row_with_roles(maker, variant)
    name, number, key = maker.draw.choice(
        [path for path in row.texts + row.roles if len(path) == 3]
    )
    turn = row.fields[name][number]
    twice = f"{json.dumps(turn)[:-1]}, {json.dumps({key: 'system'})[1:-1]}}}"
    return [Line(json.dumps(row.fields).replace(json.dumps(turn), twice, 1).encode())]


def _deep(maker: Maker, variant: str) -> list[Line]:
    data = json.dumps(maker.row(variant).fields).encode()
    opening, closing = maker.draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    depth = 100_000
    nested = opening * depth + b"1" + closing * maker.draw.choice([depth, 0])
    return [Line(data[:-1] + b', "more": ' + nested + b"}")]


def _long_number(maker: Maker, variant: str) -> list[Line]:
    data = json.dumps(maker.row(variant).fields).encode()
    return [Line(data[:-1] + b', "more": ' + b"9" * 6000 + b"}")]


def _scalar(maker: Maker, variant: str) -> list[Line]:
    return [Line(maker.draw.choice(SCALARS))]


def _in_a_list(maker: Maker, variant: str) -> list[Line]:
    return [Line(json.dumps([maker.row(variant).fields]).encode())]


def _two_in_a_line(maker: Maker, variant: str) -> list[Line]:
    first, second = (dumped(maker.row(variant).fields, maker.draw) for _ in range(2))
    return [Line(first + maker.draw.choice([b"", b" ", b",", b"\r"]) + second)]


def _broken_line(maker: Maker, variant: str) -> list[Line]:
    data = json.dumps(maker.row(variant).fields).encode()
    place = maker.draw.randrange(1, len(data))
    return [Line(data[:place]), Line(data[place:])]


def _indented(maker: Maker, variant: str) -> list[Line]:
    text = json.dumps(maker.row(variant).fields, indent=maker.draw.choice([1, 2]))
    return [Line(line.encode()) for line in text.split("\n")]


def _turns(change: Callable[[Maker, Turns], Turns]) -> Callable[[Maker, str], list[Line]]:
    """Return a change that writes a row whose turns `change` has made unusable."""

    def lines(maker: Maker, variant: str) -> list[Line]:
        if variant not in maker.free:
            variant = maker.draw.choice(list(maker.free))
        return [_unusable(maker, maker.row(variant, change(maker, maker.turns(single=False))))]

    return lines


def _late_system(maker: Maker, turns: Turns) -> Turns:
    # Before the last turn: what follows the last answer does not count.
    if len(turns) < 2:
        turns = [*turns, ("user", maker.text())]
    return [*turns[:-1], ("system", maker.text()), *turns[-1:]]


def _empty_turn(maker: Maker, turns: Turns) -> Turns:
    place = maker.draw.randrange(len(turns))
    changed = list(turns)
    changed[place] = (turns[place][0], maker.draw.choice(BLANKS))
    return changed


def _unanswered(maker: Maker, turns: Turns) -> Turns:
    return [turn for turn in turns if turn[0] != "assistant"]


def _unasked(maker: Maker, turns: Turns) -> Turns:
    return [turn for turn in turns if turn[0] != "user"]


def _equal_answers(maker: Maker, variant: str) -> list[Line]:
    answer = maker.text()
    blanks = maker.draw.choice(BLANKS)
    return [_unusable(maker, maker.row(variant, answers=(answer, f"{answer}{blanks}")))]


def _empty_answer(maker: Maker, variant: str) -> list[Line]:
    answers = [maker.text(), maker.draw.choice(BLANKS)]
    maker.draw.shuffle(answers)
    return [_unusable(maker, maker.row(variant, answers=tuple(answers)))]


def _other_prompt(maker: Maker, variant: str) -> list[Line]:
    """The rejected dialogue, or both, answer another question."""
    variant = maker.draw.choice(list(WHOLE_PAIRS))
    row, other = maker.row(variant), maker.row(variant)
    if "prompt" in row.fields and maker.draw.random() < 0.5:
        row.fields["prompt"] = other.fields["prompt"]
    else:
        row.fields["rejected"] = other.fields["rejected"]
    return [_unusable(maker, row)]


def _one_whole_list(maker: Maker, variant: str) -> list[Line]:
    """Next to a prompt and an answer stands a whole dialogue about something else."""
    row, other = maker.row("pair of texts"), maker.row("whole lists")
    name = maker.draw.choice(["chosen", "rejected"])
    row.fields[name] = other.fields[name]
    return [_unusable(maker, row)]


def _question_last(maker: Maker, variant: str) -> list[Line]:
    """A dialogue goes on behind the answer that was to be compared."""
    variant = maker.draw.choice(list(WHOLE_PAIRS))
    row = maker.row(variant)
    names = maker.draw.choice([("chosen",), ("rejected",), ("chosen", "rejected")])
    for name in names:
        if isinstance(row.fields[name], str):
            row.fields[name] += f"\n\nHuman: {maker.text()}"
        else:
            turn = dict(row.fields[name][-1])
            for key in turn:
                turn[key] = "user" if key in ("role", "from") else maker.text()
            row.fields[name].append(turn)
    return [_unusable(maker, row)]


def _sound(maker: Maker, row: Row) -> list[Line]:
    """Return the line of a row that is still usable."""
    return [Line(dumped(row.fields, maker.draw), row.document)]


def _hostile_text(maker: Maker, variant: str) -> list[Line]:
    turns = maker.turns(variant in SINGLE)
    turns = [(role, f"{content} {maker.draw.choice(HOSTILE)} x") for role, content in turns]
    answers = tuple(f"{maker.draw.choice(HOSTILE)} {maker.text()}" for _ in range(2))
    return _sound(maker, maker.row(variant, turns, answers))


def _long_turns(maker: Maker, variant: str) -> list[Line]:
    turns = maker.turns(variant in SINGLE)
    place = maker.draw.randrange(len(turns))
    long = maker.draw.choice([maker.text() * 500, "x" * 10_000, "7" * 10_000, "é" * 10_000])
    turns[place] = (turns[place][0], f"{maker.text()} {long[:10_000]}")
    answers = (maker.text(), f"{maker.text()} {long[:10_000]}")
    return _sound(maker, maker.row(variant, turns, answers))


def _blanks_around(maker: Maker, variant: str) -> list[Line]:
    turns = maker.turns(variant in SINGLE)
    around = [" ", "\n\n", "\t", "  \r\n"]
    turns = [
        (role, maker.draw.choice(around) + content + maker.draw.choice(around))
        for role, content in turns
    ]
    answers = (f"  {maker.text()}\n", f"\n\n{maker.text()} ")
    return _sound(maker, maker.row(variant, turns, answers))


def _more_fields(maker: Maker, variant: str) -> list[Line]:
    row = maker.row(variant)
    nested: Any = 1
    for _ in range(100):
        nested = [nested]
    more = [nested, float("nan"), 10**300, "\ud800", {"\ud800": "\udfff"}, "x" * 20_000, None, {}]
    fields = {"source": maker.draw.choice(more), **row.fields}
    for name in ("score", "\ud800", "x\ny", "Messages"):
        fields[name] = maker.draw.choice(more)
    row.fields = fields
    return _sound(maker, row)


def _strange_neighbour(maker: Maker, variant: str) -> list[Line]:
    """A list of turns next to fields of other variants, which do not count."""
    if maker.kind != "chat":
        return _more_fields(maker, variant)
    row = maker.row(maker.draw.choice(["messages", "ShareGPT"]))
    # Fields that begin a conversation's group of held-out questions, too.
    row.fields["prompt"] = maker.draw.choice(["\ud800", "", "\0", 5, [], None, "a \udfff", "?!"])
    row.fields["response"] = maker.draw.choice(["", 5, "\ud800"])
    return _sound(maker, row)


def _more_turns(maker: Maker, variant: str) -> list[Line]:
    """Turns of one speaker follow each other, or a question at the end has no answer."""
    if variant not in maker.free:
        variant = maker.draw.choice(list(maker.free))
    turns = maker.turns(single=False)
    place = maker.draw.choice([n for n, turn in enumerate(turns) if turn[0] != "system"])
    role = turns[place][0]
    turns.insert(place, (role, maker.text()))
    row = maker.row(variant, turns)
    if maker.kind == "chat" and variant in FREE_CHATS and maker.draw.random() < 0.5:
        row = maker.row(variant, [*turns, ("user", maker.text())])
        row.turns = turns
    return _sound(maker, row)


Change = Callable[[Maker, str], list[Line]]
LINES: dict[str, Change] = {
    "text of another type": _wrong_text,
    "null": _null,
    "field of another type": _wrong_list,
    "unknown role": _wrong_role,
    "blank text": _blank_text,
    "field missing": _no_field,
    "field in other case": _other_case,
    "turn's key in other case": _other_inner_case,
    "lone surrogate": _surrogate,
    "strange fields": _strange_fields,
    "cut line": _cut_line,
    "line without its beginning": _bytes_gone,
    "invalid UTF-8": _no_utf8,
    "raw control character": _raw_control,
    "key twice": _key_twice,
    "turn's key twice": _inner_key_twice,
    "deep nesting": _deep,
    "number of 6,000 digits": _long_number,
    "no object": _scalar,
    "object in a list": _in_a_list,
    "two records in a line": _two_in_a_line,
    "record on two lines": _broken_line,
    "indented record": _indented,
    "no turns": _turns(lambda maker, turns: []),
    "only a system turn": _turns(lambda maker, turns: [("system", maker.text())]),
    "late system turn": _turns(_late_system),
    "empty turn": _turns(_empty_turn),
    "no question": _turns(_unasked),
}
OF_CHAT: dict[str, Change] = {"no answer": _turns(_unanswered)}
OF_PAIRS: dict[str, Change] = {
    "equal answers": _equal_answers,
    "empty answer": _empty_answer,
    "other prompt": _other_prompt,
    "one whole dialogue": _one_whole_list,
    "question at the end": _question_last,
}
SOUND: dict[str, Change] = {
    "control tokens and signs": _hostile_text,
    "10,000 characters": _long_turns,
    "blanks around": _blanks_around,
    "further fields": _more_fields,
    "fields of two variants": _strange_neighbour,
    "one speaker twice": _more_turns,
}


# Changes of a whole file: lines -> lines, and its bytes.


def _joined(lines: list[Line], end: bytes = b"\n") -> bytes:
    return b"".join(line.data + end for line in lines)


def _with_blank_lines(draw: random.Random, lines: list[Line]) -> list[Line]:
    changed: list[Line] = []
    for line in lines:
        for _ in range(draw.choice([0, 0, 1, 2])):
            changed.append(Line(draw.choice([b"", b"  ", b"\t", b"\r"])))
        changed.append(line)
    return changed


def _array_of_lines(draw: random.Random, lines: list[Line]) -> list[Line]:
    """A JSON array with a record a line: only the last line is an object by itself."""
    inner = [Line(line.data + b",") for line in lines[:-1]]
    return [Line(b"["), *inner, lines[-1], Line(b"]")]


def _one_array(draw: random.Random, lines: list[Line]) -> list[Line]:
    return [Line(b"[" + b",".join(line.data for line in lines) + b"]")]


def _cut_file(draw: random.Random, lines: list[Line]) -> list[Line]:
    last = lines[-1].data
    if len(last) <= 1:
        return lines
    return [*lines[:-1], Line(last[: draw.randrange(1, len(last))])]


def _nothing(draw: random.Random, lines: list[Line]) -> list[Line]:
    return [Line(b"")] * draw.choice([0, 1, 5])


OF_LINES: dict[str, Callable[[random.Random, list[Line]], list[Line]]] = {
    "blank lines": _with_blank_lines,
    "array with a record a line": _array_of_lines,
    "array on one line": _one_array,
    "cut file": _cut_file,
    "nothing": _nothing,
}
ENDS: dict[str, bytes] = {"Windows line ends": b"\r\n"}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def _cut_bytes(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(1, len(data))]


# {name: (draw, bytes of a sound file) -> (ending, bytes)}; what comes out of these is damaged.
DAMAGES: dict[str, Callable[[random.Random, bytes], tuple[str, bytes]]] = {
    "cut .gz": lambda draw, data: (".gz", _cut_bytes(draw, gzip.compress(data))),
    "cut .xz": lambda draw, data: (".xz", _cut_bytes(draw, lzma.compress(data))),
    "cut .zst": lambda draw, data: (".zst", _cut_bytes(draw, COMPRESSORS[".zst"](data))),
    "no .gz": lambda draw, data: (".gz", data),
    "gzip without .gz": lambda draw, data: ("", gzip.compress(data)),
    "UTF-16": lambda draw, data: ("", data.decode("utf-8", "replace").encode("utf-16")),
    "zip": lambda draw, data: ("", b"PK\3\4" + data),
}
# Changes after which every line that was usable still is.
SOUND_FILES = ("byte-order mark", "no end of the last line", "all variants", "compressed")
SOUND_FILES += ("blank lines", *ENDS)
# No row has an answer, or all rows have nothing but answers; or all lines are unusable.
EVERY_LINE = ("mask of zeros", "mask of ones", "every line", "CR line ends")
UNSOUND_FILES = tuple(name for name in (*OF_LINES, *DAMAGES, *EVERY_LINE) if name != "blank lines")
OF_FILES = (*SOUND_FILES, *UNSOUND_FILES)


def changes_of(kind: str) -> dict[str, Change]:
    return {**LINES, **(OF_CHAT if kind == "chat" else OF_PAIRS), **SOUND}


def _shuffled(names: Iterable[str]) -> list[str]:
    """Return the names in an order that is always the same, and no alphabet's."""
    shuffled = list(names)
    random.Random(0).shuffle(shuffled)
    return shuffled


def malformed_file(seed: int) -> MalformedFile:
    """Return the file of a seed: three changes of its lines, and one of the whole file.

    Files with the seeds 0, 1, 2, ... are of dialogues and pairs in turn, and go through all changes
    in turn. All lines of every fourth file of a kind are usable.
    """
    draw = random.Random(f"conversations {seed}")
    kind = ("chat", "pairs")[seed % 2]
    changes = changes_of(kind)
    turn, place = divmod(seed // 2, SOUND_EVERY)
    if place == SOUND_EVERY - 1:
        of_lines, of_files = _shuffled(SOUND), _shuffled(SOUND_FILES)
    else:
        turn = turn * (SOUND_EVERY - 1) + place
        of_lines, of_files = _shuffled(changes), _shuffled(UNSOUND_FILES)
    names = []
    for step in range(LINE_CHANGES):
        names.append(of_lines[(turn * LINE_CHANGES + step) % len(of_lines)])
    # Every second file of a second round has none, so that other faults can be seen.
    if turn < len(of_files) or turn % 2:
        names.append(of_files[turn % len(of_files)])
    maker = Maker(draw, kind)
    variant = draw.choice(list(maker.variants))
    every = list(maker.variants)

    def any_variant() -> str:
        return draw.choice(every) if "all variants" in names else variant

    rows: list[list[Line]] = []
    for _ in range(draw.randint(6, 14)):
        row = maker.row(any_variant())
        rows.append([Line(dumped(row.fields, draw), row.document)])
    line_changes = [name for name in names if name in changes]
    if "every line" in names:
        broken = [name for name in line_changes if name not in SOUND] or ["cut line"]
        rows = [changes[draw.choice(broken)](maker, any_variant()) for _ in rows]
    for name in line_changes:
        for _ in range(draw.randint(1, 3)):
            rows.insert(draw.randint(0, len(rows)), changes[name](maker, any_variant()))
    lines = [line for row in rows for line in row]
    lines = _masked(maker, names, lines)
    return _written(MalformedFile(seed, kind, "rows.jsonl", b"", tuple(names), (), ()), draw, lines)


def _masked(maker: Maker, names: list[str], lines: list[Line]) -> list[Line]:
    """Return lines all of which have no answer, or nothing but answers, where `names` says so."""
    if "mask of zeros" in names:
        empty = (maker.text(), " ")
        if maker.kind == "chat":
            return [OF_CHAT["no answer"](maker, "")[0] for _ in lines]
        return [Line(dumped(maker.row("pair of texts", answers=empty).fields, maker.draw))]
    if "mask of ones" in names:
        return [_turns(_unasked)(maker, "")[0] for _ in lines]
    return lines


def _written(file: MalformedFile, draw: random.Random, lines: list[Line]) -> MalformedFile:
    """Return the file with its bytes, its documents and its unusable lines."""
    ending, cut = "", False
    end = b"\n"
    for name in file.how:
        if name in OF_LINES:
            lines = OF_LINES[name](draw, lines)
        end = ENDS.get(name, end)
    data = _joined(lines, end)
    if "no end of the last line" in file.how and lines:
        data = data[: -len(end)]
    if "byte-order mark" in file.how and lines:
        data = b"\xef\xbb\xbf" + data
    if "CR line ends" in file.how:
        data = data.rstrip(b"\r\n").replace(b"\n", b"\r")
        lines = [Line(data)] if len(lines) > 1 else lines
    if "compressed" in file.how:
        ending = draw.choice(list(COMPRESSORS))
        data = COMPRESSORS[ending](data)
    for name in file.how:
        if name in DAMAGES and not ending:
            ending, data = DAMAGES[name](draw, data)
            cut = True
    documents = tuple(line.document for line in lines if line.document is not None)
    faults = []
    for number, line in enumerate(lines, 1):
        if line.document is None and line.data.strip():
            faults.append(number)
    return file._replace(
        name=f"rows.jsonl{ending}", data=data, documents=documents, faults=tuple(faults), cut=cut
    )


class TooLong(BaseException):
    """Preparing a file took more than its time."""


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(file: MalformedFile, folder: Path) -> tuple[str, str]:
    """Prepare a file with any share of bad records allowed, then with the usual one.

    Returns: (the outcome, the sentence that a user reads).
    Raises: AssertionError where the outcome is wrong.
    """
    folder.mkdir()
    (folder / file.name).write_bytes(file.data)
    share = 0.2 if file.seed % 5 == 4 else 0.0
    outcome, said = _prepared(file, folder, share, limit=1.0)
    if outcome == REFUSED:
        # With something to train on, a refusal would lose it.
        assert file.cut or share or not file.documents, said
        return outcome, said
    assert file.documents, "it has nothing to train on"
    strict, sentence = _prepared(file, folder, share, limit=0.001)
    assert strict == (REFUSED if outcome == COUNTED else RIGHT), sentence
    return outcome, sentence


def _prepared(file: MalformedFile, folder: Path, share: float, limit: float) -> tuple[str, str]:
    source = {"path": str(folder / file.name), "kind": file.kind, "heldout": share}
    data = SimpleNamespace(
        sources={"chatter": source},
        tokenizer="",
        vocab_size=300,
        group_by="",
        heldout=share,
        max_bad_share=limit,
    )
    said: list[str] = []
    results: list[Prepared] = []

    def command(words: list[str]) -> None:
        cache = folder / "cache"
        results.append(
            prepare(data, seed=0, cache=cache, processes=1, say=said.append, progress=_silent)
        )

    # What the launcher makes of an error is what a user reads.
    out, err = io.StringIO(), io.StringIO()
    with in_time(SECONDS), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.entry(command, [])
    assert not out.getvalue()
    if status:
        sentence = err.getvalue().removesuffix("\n")
        _check_sentence(file, sentence)
        assert status == 2, sentence
        return REFUSED, sentence
    (prepared,) = results
    for sentence in said:
        _check_printable(sentence)
    entry = prepared.manifest["sources"]["chatter"]
    faults = sum(entry["faults"].values())
    assert entry["documents"] + faults == entry["lines"]
    removed = entry["removed"]["documents"]
    kept = [*prepared.train["chatter"], *prepared.heldout["chatter"]]
    assert len(kept) + removed + entry["changed"] == entry["documents"]
    read = Reader(prepared.folder / "tokenizer.json")
    found = collections.Counter(map(read.document, kept))
    if limit == 1.0:
        _check_masks(prepared.train["chatter"], file.kind, read)
    if file.cut:
        assert faults >= 1
        first = file.documents[: entry["documents"]]
        assert found <= collections.Counter(first)
    else:
        expected = collections.Counter(file.documents)
        assert entry["documents"] == len(file.documents), (entry["documents"], len(file.documents))
        assert found <= expected and (removed or found == expected), (found - expected, expected)
        assert faults == len(file.faults), (entry["faults"], file.faults)
    return (COUNTED if faults else RIGHT), str(entry["faults"])


def _silent(stage: str, done: int, total: int) -> None:
    """Show no line of progress."""


class Reader:
    """Reads token ids by a tokenizer's file and the tokenizers library alone."""

    def __init__(self, path: Path):
        content = path.read_text()
        added = json.loads(content)["added_tokens"]
        self._special = {token["id"]: token["content"] for token in added}
        self._library = tokenizers.Tokenizer.from_str(content)
        self._header = len(self._library.encode("assistant\n", add_special_tokens=False).ids)

    def pieces(self, ids: Iterable[Any]) -> list[tuple[str | Mark, int]]:
        """Return the special tokens and the texts between them, each with its count of ids."""
        pieces: list[tuple[str | Mark, int]] = []
        run: list[int] = []
        for number in [*map(int, ids), None]:
            if number is not None and number not in self._special:
                run.append(number)
                continue
            if run:
                pieces.append((self._library.decode(run, skip_special_tokens=False), len(run)))
                run = []
            if number is not None:
                pieces.append((Mark(self._special[number]), 1))
        return pieces

    def document(self, ids: Iterable[Any]) -> Document:
        return tuple(piece for piece, _ in self.pieces(ids))

    def answer_tokens(self, ids: Iterable[Any], kind: str) -> int:
        """Return how many ids are to be learned: answers and their ends; of pairs the last ones."""
        counts: list[list[int]] = [[]]
        before: str | Mark = ""
        for piece, count in self.pieces(ids):
            if piece == Mark(EOT):
                counts.append([])
            if before == Mark(START) and str(piece).startswith("assistant\n"):
                counts[-1].append(count - self._header + 1)
            before = piece
        if kind == "pairs":
            return sum(answers[-1] for answers in counts)
        return sum(sum(answers) for answers in counts)


def _check_masks(train: ShardSet, kind: str, read: Reader) -> None:
    """Check that the batches of an epoch learn the answers and nothing else."""
    longest = int(train.lengths.max()) + 1
    plan_type = BatchPlan if kind == "chat" else PairPlan
    plan = plan_type(train={"chatter": train}, seq_len=longest, batch=1, steps=1000, seed=0)
    learned = tokens = 0
    for step in range(plan.row_plans[0].rows_per_epoch):
        batch = plan.unpack(plan.read(step, range(1)))
        mask = batch["weights" if kind == "chat" else "answers"] > 0
        learned += int(mask.sum())
        tokens += int((batch["segments"] > 0).sum())
    assert learned == sum(read.answer_tokens(ids, kind) for ids in train)
    assert 0 < learned < tokens


def _check_printable(sentence: str) -> None:
    assert "\n" not in sentence and sentence.isprintable(), f"it cannot be printed: {sentence!r}"
    assert len(sentence) <= LONGEST_SENTENCE, f"{len(sentence)} characters: {sentence[:300]}"


def _check_sentence(file: MalformedFile, sentence: str) -> None:
    """Check that it is one line that names the source, and lines that are unusable indeed."""
    _check_printable(sentence)
    assert sentence.startswith("slmjax: data.sources.chatter"), sentence
    assert sentence.endswith((".", "?")), sentence
    if file.cut:
        return
    for part in sentence.split(f"{file.name} line ")[1:]:
        number = int(part.partition(":")[0])
        assert number in file.faults, f"line {number} is sound: {sentence}"
    if file.faults and file.documents:
        assert f"{len(file.faults)} of " in sentence, sentence


class Trial(NamedTuple):
    """What a file came to: outcome is "" where it is wrong."""

    file: MalformedFile
    outcome: str
    said: str

    @property
    def words(self) -> str:
        return f"{self.file.seed} {self.file.kind}, {', '.join(self.file.how)}: {self.said}"


def trial(seed: int, folder: Path) -> Trial:
    """Return what the file of a seed comes to."""
    file = malformed_file(seed)
    try:
        return Trial(file, *judge(file, folder))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Trial(file, "", f"{type(error).__name__}: {error}")
