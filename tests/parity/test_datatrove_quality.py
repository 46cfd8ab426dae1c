"""Decisions and reasons of the quality rules against datatrove's, on 5,000 real documents, most damaged so that every reason occurs.

Needs datatrove with its dependencies for English (spaCy, nltk, regex), pytest and numpy, not jax: `pytest --noconftest` runs it there.
"""

import json
import lzma
import os
import random
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

from slmjax.curate.c4 import CITATION
from slmjax.curate.quality import RULES
from slmjax.curate.words import split_words

data = pytest.importorskip("datatrove.data")
filters = pytest.importorskip("datatrove.pipeline.filters")
spacy = pytest.importorskip("spacy")

pytestmark = [pytest.mark.parity, pytest.mark.slow]

SHARED = (
    Path(os.environ.get("SLMJAX_SHARED", Path(__file__).parents[2] / "../shared/data")) / "pretrain"
)
COUNT = 5000
THEIRS = {
    "gopher_repetition": filters.GopherRepetitionFilter(),
    "gopher_quality": filters.GopherQualityFilter(),
    "c4": filters.C4QualityFilter(),
    "c4_any_line_end": filters.C4QualityFilter(filter_no_terminal_punct=False),
    "fineweb": filters.FineWebQualityFilter(),
}
REASONS = {
    "gopher_quality": {
        "gopher_short_doc": "too few words",
        "gopher_long_doc": "too many words",
        "gopher_below_avg_threshold": "words too short",
        "gopher_above_avg_threshold": "words too long",
        "gopher_too_many_hashes": "too many hashes",
        "gopher_too_many_ellipsis": "too many ellipses",
        "gopher_too_many_bullets": "too many bullet lines",
        "gopher_too_many_end_ellipsis": "too many lines end in an ellipsis",
        "gopher_below_alpha_threshold": "too few words with a letter",
        "gopher_enough_stop_words": "too few stop words",
    },
    "gopher_repetition": {
        "empty": "empty",
        "dup_para_frac": "repeated paragraphs",
        "dup_para_char_frac": "repeated paragraphs by characters",
        "dup_line_frac": "repeated lines",
        "dup_line_char_frac": "repeated lines by characters",
        **{f"top_{n}_gram": f"top {n}-gram" for n in (2, 3, 4)},
        **{f"duplicated_{n}_n_grams": f"repeated {n}-grams" for n in range(5, 11)},
    },
    "c4": {
        "lorem_ipsum": "lorem ipsum",
        "curly_bracket": "curly bracket",
        "too_few_sentences": "too few sentences",
    },
    "fineweb": {
        "empty": "empty",
        "line_punct_ratio": "too few lines end in punctuation",
        "short_line_ratio": "too many short lines",
        "char_dup_ratio": "repeated lines by characters",
        "list_ratio": "too many line breaks",
    },
}


def theirs(name, text):
    """What datatrove keeps, and its reason in our words."""
    document = data.Document(text=text, id="0")
    result = THEIRS[name].filter(document)
    if result is True:
        return document.text, None
    family = name.removesuffix("_any_line_end")
    return text, f"{family}: {REASONS[family][result[1]]}"


def real_texts():
    """Equal numbers from each domain, cut at a random place to a random length, as they come."""
    folders = sorted(folder for folder in SHARED.iterdir() if folder.is_dir())
    each = -(-COUNT // len(folders))
    rng = random.Random(0)
    for folder in folders:
        with lzma.open(
            sorted(folder.glob("*.jsonl.xz"))[0], "rt", encoding="utf8", newline="\n"
        ) as lines:
            for _, line in zip(range(each), lines):
                text = json.loads(line)["text"]
                start = rng.randrange(max(1, len(text) - 3000))
                yield text[start : start + rng.randrange(600, 3000)]


def damaged(text, rng):
    """The text with one kind of damage, by more or less."""
    words, lines, share = text.split(), text.split("\n"), rng.random()
    some = [line for line in lines if line.strip()] or [text]
    span = rng.choice((2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 12, 20, 40))
    at = rng.randrange(max(1, len(words) - span))
    echo = words[at : at + span]
    sentences = text.replace(". ", ".\n").split("\n")
    every = rng.randrange(1, 12)
    symbols = ("|", "+", "$5", "☃", "—", "(c)", "→", "𝔄", "中文。", ":-)", "a_b", "x=y")
    breaks = ("\r\n", "\u2028", "\f", "\r")
    menu = ("Enable JavaScript to go on.", "We use cookies.", "Home", "Our privacy policy.")
    citations = (".[1] ", ".[1][2] ", ". [citation needed] ", ".[edit]\n", ".[]\n")

    def mixed(change):
        return [change(word) if rng.random() < share else word for word in words]

    kinds = {
        "as it is": lambda: text,
        "nothing": lambda: rng.choice(
            ("", " ", "\n", " \n\t\n ", "\u3000\n", "...", ".", "#", "-", "x", "\ufeff")
        ),
        "a fragment": lambda: text[: rng.randrange(1, 400)],
        "shuffled lines": lambda: "\n".join(rng.sample(lines, len(lines))),
        "repeated paragraph": lambda: text + ("\n\n" + rng.choice(some)) * rng.randrange(1, 6),
        "repeated short lines": lambda: "\n".join(
            [*sentences, *[rng.choice(some)[: rng.randrange(1, 40)]] * rng.randrange(1, 12)]
        ),
        "repeated paragraphs, short": lambda: "\n\n".join(
            [*(text.split("\n\n")), *["More", "See also"] * rng.randrange(1, 9)]
        ),
        "repeated words": lambda: " ".join(
            words + echo * max(1, int(0.4 * share * len(words) / span))
        ),
        "repeated words, scattered": lambda: " ".join(
            part
            for i in range(0, len(words), every * 4 + 1)
            for part in (*words[i : i + every * 4 + 1], *echo)
        ),
        "a few echoes": lambda: " ".join(
            words[:at] + words[max(0, at - int(len(words) * 0.25 * share)) :]
        ),
        "one word": lambda: " ".join([rng.choice(words or ["a"])] * rng.randrange(1, 80)),
        "bullets": lambda: "\n".join(
            f"{rng.choice('•-')} {line}" if rng.random() < 0.8 + 0.25 * share else line
            for line in sentences
        ),
        "hashes": lambda: " ".join(mixed(lambda word: f"#{word}")),
        "ellipses": lambda: " ".join(mixed(lambda word: word + rng.choice(("...", "…")))),
        "lines end in ellipses": lambda: "\n".join(
            line.rstrip(". ") + "..." if rng.random() < share else line for line in sentences
        ),
        "blank lines": lambda: "\n".join(line + "\n" * rng.randrange(4) for line in sentences),
        "short lines": lambda: "\n".join(
            " ".join(words[i : i + every]) for i in range(0, len(words), every)
        ),
        "long lines": lambda: " ".join(words),
        "words joined": lambda: " ".join(
            "".join(words[i : i + every]) for i in range(0, len(words), every)
        ),
        "letters apart": lambda: " ".join(
            " ".join(word) if rng.random() < share else word for word in words
        ),
        "numbers": lambda: " ".join(mixed(lambda word: str(len(word) * 37))),
        "symbols": lambda: " ".join(mixed(lambda word: rng.choice(symbols))),
        "no small words": lambda: " ".join(
            word for word in words if len(word) > 4 or rng.random() < 0.1 * share
        ),
        "capitals": text.upper,
        "lorem ipsum": lambda: (
            text + rng.choice(("\nLorem ipsum dolor sit amet.", " lorem ipsum", "\nLorem ipsum"))
        ),
        "curly bracket": lambda: (
            text.replace(". ", ". {", 1) + rng.choice(("", "\n{ }", "\n{{ a template }}."))
        ),
        "web page": lambda: "\n".join(
            line for some in sentences for line in (some, rng.choice(menu))
        ),
        "citations": lambda: text.replace(". ", rng.choice(citations)) + "\n[1] [2] [3]",
        "other white space": lambda: text.replace(" ", rng.choice("\xa0\t\u2003")).replace(
            "\n", rng.choice(breaks)
        ),
        "unseen characters": lambda: "".join(
            c + rng.choice(("", "", "", "\u200b", "\xad", "\x00", "\x1b")) for c in text[:600]
        ),
        "a long word": lambda: text + "\n" + "a" * rng.randrange(900, 1100) + " is a long word.",
    }
    return kinds[rng.choice(list(kinds))]()


@pytest.fixture(scope="module")
def documents():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent; set SLMJAX_SHARED to the shared data")
    rng = random.Random(1)
    texts = [damaged(text, rng) if rng.random() < 0.8 else text for text in real_texts()]
    long = " ".join(texts)
    return [*texts[: COUNT - 2], " ".join(long.split()[:99_000]), " ".join(long.split()[:110_000])]


@pytest.fixture(scope="module")
def decisions(documents):
    """For each rule the pairs of what ours and theirs say, timed with the words counted anew by each side for each rule."""
    out = {}
    for name in RULES:
        start = time.perf_counter()
        peer = [theirs(name, text) for text in documents]
        middle = time.perf_counter()
        ours = [RULES[name](text) for text in documents]
        end = time.perf_counter()
        print(
            f"\n{name}: {len(documents) / (end - middle):,.0f} documents/s, datatrove {len(documents) / (middle - start):,.0f}"
        )
        out[name] = list(zip(ours, peer))
    return out


@pytest.mark.parametrize("name", RULES)
def test_texts_and_reasons_equal_datatroves(documents, decisions, name):
    other = [
        (text, ours, peer) for text, (ours, peer) in zip(documents, decisions[name]) if ours != peer
    ]
    assert len(decisions[name]) == COUNT
    print(f"\n{name}: {len(other)} of {COUNT} decided otherwise")
    unexplained = [
        (ours[1], peer[1], text[:300])
        for text, ours, peer in other
        if not _explained(name, text, ours, peer)
    ]
    assert not unexplained, f"{len(unexplained)} of {len(other)}: {unexplained[:5]}"
    assert len(other) < COUNT / 50


@pytest.mark.parametrize("name", RULES)
def test_every_reason_occurs_and_texts_are_kept_too(decisions, name):
    ours, peer = (Counter(reason for _, reason in side) for side in zip(*decisions[name]))
    print(f"\n{name}: {dict(ours)}")
    family = name.removesuffix("_any_line_end")
    expected = {f"{family}: {reason}" for reason in REASONS[family].values()}
    assert expected | {None} == set(ours) == set(peer)


def test_pieces_of_text_split_as_spacy_splits_them(documents):
    tokenizer = spacy.blank("en").tokenizer
    pieces = {piece for text in documents for piece in text.split() if len(piece) < 200}
    other = [
        piece
        for piece in pieces
        if split_words(piece) != tuple(token.text for token in tokenizer(piece))
    ]
    print(f"\n{len(other)} of {len(pieces)} different pieces split otherwise: {other[:20]}")
    assert len(pieces) > 50_000 and len(other) < len(pieces) / 2000


def _explained(name, text, ours, peer):
    """What is decided otherwise on purpose.

    A text of nothing but white space is empty; datatrove keeps some, and finds repeated lines in others. It takes the n-grams "a bc" and
    "ab c" for the same. It counts a sentence in a line of nothing but citation marks, so that such lines make up for missing sentences.
    """
    if name == "gopher_repetition":
        if not text.strip():
            return ours[1] == "gopher_repetition: empty"
        with mock.patch(
            "datatrove.pipeline.filters.gopher_repetition_filter.find_all_duplicate",
            _find_all_duplicate,
        ):
            return theirs(name, text) == ours
    without = "\n".join(
        line for line in text.splitlines() if not line or CITATION.sub("", line).strip()
    )
    return (
        name == "c4_any_line_end"
        and without != text
        and RULES[name](without)[1] == theirs(name, without)[1] == ours[1]
    )


def _find_all_duplicate(words, n):
    """Datatrove's, but for n-grams that are compared word by word."""
    seen, characters, at = set(), 0, 0
    while at < len(words) - n + 1:
        gram = tuple(words[at : at + n])
        characters += sum(map(len, gram)) * (gram in seen)
        at += n if gram in seen else 1
        seen.add(gram)
    return characters
