"""Preparation: shards hold exactly the text, once, whatever is killed, shared or repeated on the way, and mistakes are named."""

import contextlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax import config as configs
from slmjax.data import build, passes, shard_files
from slmjax.data import prepare as preparation
from slmjax.data import prepare_stage as stage
from slmjax.data.manifest import read_manifest
from slmjax.data.prepare import preparation_summary, prepare
from slmjax.data.shards import ShardSet, ShardWriter
from slmjax.errors import UserError
from slmjax.text import units as work
from slmjax.text.readers import read_documents
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources
from slmjax.text.tokenizer import EOT, SPECIAL, train_bpe

ROOT = Path(__file__).parents[2]


def settings(sources, **changes) -> SimpleNamespace:
    base = {
        "tokenizer": "",
        "vocab_size": 300,
        "group_by": "^(.*)/",
        "heldout": 0.1,
        "max_bad_share": 0.001,
    }
    return SimpleNamespace(sources=sources, **{**base, **changes})


def run(data, cache, **options):
    return prepare(
        data, **{"seed": 0, "cache": cache, "processes": 1, "say": lambda sentence: None, **options}
    )


def write(path: Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def corpus(folder: Path, files: int = 4, documents: int = 60, seed: int = 0) -> dict:
    """Two sources of random words: books (several files; ten chapters a book, spread over files) and notes."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(500)]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(5, 120)))

    books = [{"text": text(), "id": f"book{i // 10}/ch{i % 10}"} for i in range(files * documents)]
    draw.shuffle(books)
    for i in range(files):
        write(folder / "books" / f"{i}.jsonl", books[i::files])
    write(folder / "notes.jsonl", [{"text": text(), "id": f"n{i}/x"} for i in range(documents)])
    return {"books": str(folder / "books"), "notes": str(folder / "notes.jsonl")}


def documents_of(sources: dict, name: str) -> list:
    (source,) = parse_sources({name: sources[name]})
    return [
        document
        for file in list_files(source)
        for document in read_documents(file, source, "^(.*)/")
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(sources, what a plain run makes of them): the undisturbed run that the others are compared with."""
    folder = tmp_path_factory.mktemp("made")
    sources = corpus(folder)
    return sources, run(settings(sources), folder / "cache")


def test_each_document_is_on_one_side_once_with_all_its_tokens(made):
    sources, prepared = made
    for name in sources:
        expected = documents_of(sources, name)
        sides = {}
        for kind, shard_set in (
            ("train", prepared.train[name]),
            ("heldout", prepared.heldout[name]),
        ):
            texts = [prepared.tokenizer.decode(ids) for ids in shard_set]
            assert [len(text.encode()) for text in texts] == shard_set.bytes.tolist()
            assert [len(ids) for ids in map(prepared.tokenizer.encode, texts)] == (
                shard_set.lengths - 1
            ).tolist()
            sides[kind] = texts
        assert sides["train"] + sides["heldout"] != [] and len(sides["heldout"]) > 0
        assert sorted(sides["train"] + sides["heldout"]) == sorted(
            document.text for document in expected
        )
        group = {document.text: document.group for document in expected}
        assert not {group[text] for text in sides["train"]} & {
            group[text] for text in sides["heldout"]
        }
        keys = {document.text: document.key for document in expected}
        assert prepared.train[name].keys.tolist() == [keys[text] for text in sides["train"]]
        entry = prepared.manifest["sources"][name]
        assert (entry["documents"], entry["lines"], entry["faults"]) == (
            len(expected),
            len(expected),
            {},
        )


def test_names_lead_back_to_the_line_and_the_summary_counts_all(made):
    sources, prepared = made
    books = prepared.train["books"]
    for doc in (0, 7, len(books) - 1):
        file, _, line = books.name(doc).rpartition(" line ")
        text = json.loads((Path(sources["books"]) / file).read_text().split("\n")[int(line) - 1])[
            "text"
        ]
        assert (
            prepared.tokenizer.decode(books.read(doc, 0, int(books.lengths[doc]) - 1)[1:]) == text
        )
    text = preparation_summary(prepared)
    assert (
        f"{len(books):,}" in text and f"{books.tokens:,}" in text and str(prepared.folder) in text
    )


def test_the_number_of_processes_changes_nothing(made, tmp_path):
    sources, prepared = made
    again = run(settings(sources), tmp_path, processes=2)
    assert (
        again.fingerprint == prepared.fingerprint
        and again.manifest["fingerprint"] == prepared.manifest["fingerprint"]
    )


def test_a_second_run_reads_no_text_and_a_touched_file_changes_nothing(made, monkeypatch):
    sources, prepared = made
    for function in ("scan_files", "collect", "tokenize", "content_hash"):
        monkeypatch.setattr(
            passes, function, lambda *arguments: pytest.fail("it read the text again")
        )
    assert run(settings(sources), prepared.folder.parent).fingerprint == prepared.fingerprint
    monkeypatch.undo()
    os.utime(sources["notes"])
    monkeypatch.setattr(
        passes, "scan_files", lambda *arguments: pytest.fail("the content is the same")
    )
    assert run(settings(sources), prepared.folder.parent).folder == prepared.folder


@pytest.mark.parametrize(
    "change", [{"vocab_size": 301}, {"heldout": 0.2}, {"group_by": ""}, {"seed": 1}, {"text": 1}]
)
def test_whatever_decides_the_content_changes_the_folder(tmp_path, change):
    sources = corpus(tmp_path, files=1, documents=40)
    first = run(settings(sources), tmp_path / "cache")
    if "text" in change:
        path = Path(sources["notes"])
        status = path.stat()
        path.write_text(path.read_text().replace("a", "b", 1))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    fields = {key: value for key, value in change.items() if key in vars(settings(""))}
    second = run(settings(sources, **fields), tmp_path / "cache", seed=change.get("seed", 0))
    assert first.folder != second.folder and first.fingerprint != second.fingerprint


def test_held_out_documents_that_training_has_are_removed_and_counted(tmp_path):
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [
        " ".join("".join(draw.choices(letters, k=6)) for _ in range(40)) for _ in range(100)
    ] + ["Short and said often."] * 2
    write(tmp_path / "a.jsonl", [{"text": text, "id": f"{i}/0"} for i, text in enumerate(texts)])
    alone = run(settings({"a": str(tmp_path / "a.jsonl")}, heldout=0.3), tmp_path / "cache")
    held = {alone.tokenizer.decode(ids) for ids in alone.heldout["a"]}
    copies = sorted(text for text in held if len(text) > 50)[::3]
    # near copies: other case and punctuation, and only the last 30 of 40 words; a fourth shares 20 words, less than half of its shingles
    near = ["Well then: " + text.upper().replace(" ", ", ") + "!" for text in copies] + [
        " ".join(sorted(held)[1].split()[:20])
    ]
    write(tmp_path / "b.jsonl", [{"text": text, "id": f"copy{i}/0"} for i, text in enumerate(near)])
    both = run(
        settings({"a": str(tmp_path / "a.jsonl"), "b": str(tmp_path / "b.jsonl")}, heldout=0.3),
        tmp_path / "cache",
    )
    left = {both.tokenizer.decode(ids) for ids in both.heldout["a"]}
    trained = {both.tokenizer.decode(ids) for ids in both.train["b"]}
    gone = {text for text, copy in zip(copies, near) if copy in trained}
    assert gone and {text for text in held - left if len(text) > 50} == gone
    removed = both.manifest["sources"]["a"]["removed"]
    assert removed["documents"] == len(held) - len(left)
    assert removed["bytes_share"] == pytest.approx(sum(map(len, held - left)) / sum(map(len, held)))


def test_a_source_with_held_out_files_of_its_own_holds_out_those_alone(tmp_path):
    sources = corpus(tmp_path, files=2)
    write(tmp_path / "own.jsonl", [{"text": "A text that nothing else has.", "id": "x/1"}])
    sources["books"] = {"path": sources["books"], "heldout": str(tmp_path / "own.jsonl")}
    prepared = run(settings(sources), tmp_path / "cache")
    assert [prepared.tokenizer.decode(ids) for ids in prepared.heldout["books"]] == [
        "A text that nothing else has."
    ]
    assert len(prepared.train["books"]) == 120 and len(prepared.heldout["notes"]) > 0
    assert prepared.heldout["books"].name(0) == "own.jsonl line 1"


@pytest.mark.parametrize(
    ("heldout", "message"),
    [
        (
            [{"texts": f"held out {i}"} for i in range(3)],
            r"3 of 3 records.*line 1: no text \('text' is missing.*Did you mean 'texts'",
        ),
        ([{"text": f"held out {i}"} for i in range(300)] + [{}], r"1 of 301 records \(0\.33%"),
        ([], "every file of '.*other.jsonl' is empty"),
        (None, "other.jsonl: it holds no document"),
        ("train", r"every document of other.jsonl occurs in training too \(3\)"),
    ],
)
def test_a_held_out_file_that_comes_to_nothing_is_refused_by_itself(tmp_path, heldout, message):
    """Beside thousands of good records of the source, and a good held-out file."""
    records = [
        {"text": f"document {i} with its {i * i} words and number {7 * i}"} for i in range(3000)
    ]
    write(tmp_path / "a.jsonl", records)
    write(tmp_path / "good.jsonl", [{"text": "something else that nobody wrote before"}])
    if heldout is None:
        (tmp_path / "other.jsonl").write_text("\n \n")
    else:
        write(tmp_path / "other.jsonl", records[:3] if heldout == "train" else heldout)
    source = {
        "path": str(tmp_path / "a.jsonl"),
        "heldout": [str(tmp_path / "good.jsonl"), str(tmp_path / "other.jsonl")],
    }
    with pytest.raises(UserError, match=rf"data\.sources\.a\.heldout.*{message}"):
        run(settings({"a": source}, group_by=""), tmp_path / "cache")
    assert not [
        entry for entry in (tmp_path / "cache").iterdir() if not entry.name.startswith(".")
    ]  # nothing half-made stays


def test_a_held_out_file_in_the_folder_of_its_source_is_not_trained_on(tmp_path):
    sources, said = corpus(tmp_path, files=2), []
    held = {"path": sources["books"], "heldout": f"{sources['books']}/1.jsonl"}
    prepared = run(settings({"books": held}), tmp_path / "cache", say=said.append)
    assert len(prepared.train["books"]) == 60 == len(prepared.heldout["books"])
    assert said == ["data.sources.books: not trained on, as held out: 1.jsonl"]
    with pytest.raises(UserError, match="each of its files is held out too"):
        run(
            settings({"books": {"path": sources["books"], "heldout": sources["books"]}}),
            tmp_path / "cache",
        )


def test_each_source_is_refused_by_itself(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": f"document {i} of many"} for i in range(3000)])
    (tmp_path / "blank.jsonl").write_text("\n \n")
    write(tmp_path / "few.jsonl", [{"text": "good"}, {"txt": "bad"}])
    good = str(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"data\.sources\.b: it holds no document"):
        run(
            settings({"a": good, "b": str(tmp_path / "blank.jsonl")}, group_by=""),
            tmp_path / "cache",
        )
    with pytest.raises(UserError, match=r"data\.sources\.b: 1 of 2 records.*Did you mean 'txt'"):
        run(
            settings({"a": good, "b": str(tmp_path / "few.jsonl")}, group_by=""), tmp_path / "cache"
        )
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(
        UserError, match=r"every file of '.*empty\.jsonl' is empty"
    ):  # each path, not all of them together
        run(settings({"a": [good, str(tmp_path / "empty.jsonl")]}, group_by=""), tmp_path / "cache")


def test_end_of_text_marks_inside_documents_are_said_with_what_to_do(tmp_path):
    (tmp_path / "stories.txt").write_text(
        "\n<|endoftext|>\n".join(f"story number {i}" for i in range(60))
    )
    said = []
    run(settings(str(tmp_path / "stories.txt"), group_by=""), tmp_path / "cache", say=said.append)
    expected = "source 'stories' is 1 document with 59 marks <|endoftext|> in the text, which end no document; cut it there"
    assert any(expected in sentence for sentence in said)
    write(
        tmp_path / "a.jsonl",
        [{"text": f"text {i}", "id": f"{i}/0"} for i in range(99)]
        + [{"text": "of <|endoftext|>", "id": "x/1"}],
    )
    said.clear()
    run(settings(str(tmp_path / "a.jsonl")), tmp_path / "cache", say=said.append)
    assert not any(
        "endoftext" in sentence for sentence in said
    )  # one document that writes about it is nothing to mend


@pytest.mark.parametrize(
    "name", ["work", "work.train", "seen.bin", "train", "textbook", "CON", "a..b"]
)
def test_a_source_may_have_the_name_of_anything_that_preparation_uses(tmp_path, name):
    sources = {name: corpus(tmp_path / "text")["notes"]}
    prepared = run(settings(sources), tmp_path / "cache")
    again = run(settings(sources), tmp_path / "cache", say=lambda sentence: pytest.fail(sentence))
    assert len(again.train[name]) == len(prepared.train[name]) == len(list(again.train[name])) > 50


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", ".tmp-1"])
def test_a_source_with_the_name_of_a_prepared_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="is a file of prepared text; give the source another name"):
        run(settings({name: corpus(tmp_path)["notes"]}), tmp_path / "cache")


def test_half_a_surrogate_pair_anywhere_in_a_record_is_a_fault_or_stays_where_it_is(tmp_path):
    lines = [json.dumps({"text": f"good {i}", "id": f"{i}/\ud800"}) for i in range(50)]
    lines += [r'{"text": "\udfff", "id": "a/b"}', r'{"\ud800": 1, "id": "\udc80/c"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepared = run(settings(str(tmp_path / "a.jsonl"), max_bad_share=0.5), tmp_path / "cache")
    assert prepared.manifest["sources"]["a"]["faults"] == {"invalid UTF-8": 1, "no text": 1}
    assert (
        run(settings(str(tmp_path / "a.jsonl"), max_bad_share=0.5), tmp_path / "cache").fingerprint
        == prepared.fingerprint
    )
    with pytest.raises(UserError, match="2 of 52 records"):
        run(settings(str(tmp_path / "a.jsonl")), tmp_path / "cache")


def test_a_given_tokenizer_is_used_as_it_is(made, tmp_path):
    sources, prepared = made
    given = train_bpe(
        ["another text " * 50], 270, (EOT,)
    )  # as those of older runs and of users: no other special tokens
    given.save(tmp_path / "mine.json")
    other = run(settings(sources, tokenizer=str(tmp_path / "mine.json")), tmp_path)
    assert other.tokenizer.sha256 == given.sha256 == other.manifest["tokenizer"]["sha256"]
    assert other.train["books"].tokens > prepared.train["books"].tokens


def changing(path: Path, change) -> str:
    """A tokenizer.json with a part changed."""
    content = json.loads(train_bpe(["another text " * 50], 285)._text)
    change(content)
    path.write_text(json.dumps(content))
    return str(path)


LOSSY = {
    "folds case": (
        lambda t: t.update(normalizer={"type": "Lowercase"}),
        "'It is so' becomes 'it is so'",
    ),
    "drops blanks": (
        lambda t: t.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [{"type": "WhitespaceSplit"}, t["pre_tokenizer"]],
            }
        ),
        "'It is so' becomes 'Itisso'",
    ),
    "does not decode": (lambda t: t.update(decoder=None), "'It is so' becomes"),
}


@pytest.mark.parametrize("kind", LOSSY)
def test_a_tokenizer_that_loses_the_users_text_is_refused(kind, tmp_path):
    change, told = LOSSY[kind]
    write(
        tmp_path / "plain.jsonl", [{"text": f"{i % 10}"} for i in range(200)]
    )  # nothing to lose: sources are not pooled
    write(tmp_path / "books.jsonl", [{"text": "It is so"} for _ in range(50)])
    sources = {"plain": str(tmp_path / "plain.jsonl"), "books": str(tmp_path / "books.jsonl")}
    data = settings(sources, tokenizer=changing(tmp_path / "mine.json", change), group_by="")
    with pytest.raises(UserError) as error:
        run(data, tmp_path / "cache")
    assert "mine.json' loses text: of 50 documents of data.sources.books it gives back 0" in str(
        error.value
    )
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_pieces_of_long_documents_that_begin_with_a_blank_do_not_condemn_a_tokenizer(tmp_path):
    write(
        tmp_path / "book.jsonl",
        [{"text": "ab " * 200_000}] + [{"text": f"page {i}"} for i in range(9)],
    )
    bytes_of = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", *bytes_of, "\u2581", "a", "b"])}
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [],
        "unk_token": "<unk>",
        "byte_fallback": True,
        "fuse_unk": True,
    }
    blank = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "always",
        "split": True,
    }
    steps = [{"type": "ByteFallback"}, blank]
    special = {
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    content = {
        "model": model,
        "pre_tokenizer": blank,
        "decoder": {"type": "Sequence", "decoders": steps},
    }
    content["added_tokens"] = [{"id": 1, "content": "</s>", **special}]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    data = settings(
        {"book": str(tmp_path / "book.jsonl")}, tokenizer=str(tmp_path / "mine.json"), group_by=""
    )
    assert run(data, tmp_path / "cache").train["book"].tokens > 500_000


def test_the_refusal_of_a_tokenizer_shows_where_the_text_changes(tmp_path):
    write(
        tmp_path / "a.jsonl",
        [{"text": "the same words for a long while and then The Change comes"}] * 50,
    )
    data = settings(
        str(tmp_path / "a.jsonl"),
        tokenizer=changing(tmp_path / "mine.json", LOSSY["folds case"][0]),
        group_by="",
    )
    with pytest.raises(
        UserError, match=r"'.* and then The Change.*' becomes '.* and then the change.*'"
    ):
        run(data, tmp_path / "cache")


def test_held_out_documents_that_a_tokenizer_changes_are_counted_and_left_out(tmp_path):
    odd = range(0, 1000, 50)  # 2 % of the documents
    texts = [f"It is so, said {i}" + " e\u0301" * (i in odd) for i in range(1000)]
    write(tmp_path / "books.jsonl", [{"text": text} for text in texts])
    tokenizer = changing(tmp_path / "mine.json", lambda t: t.update(normalizer={"type": "NFC"}))
    said = []
    prepared = run(
        settings(
            {"books": str(tmp_path / "books.jsonl")}, tokenizer=tokenizer, group_by="", heldout=0.5
        ),
        tmp_path,
        say=said.append,
    )
    held = [prepared.tokenizer.decode(ids) for ids in prepared.heldout["books"]]
    changed = prepared.manifest["sources"]["books"]["changed"]
    assert (
        0 < changed < len(odd)
        and set(held) <= set(texts)
        and not [text for text in held if "\u00e9" in text]
    )
    assert len(held) + changed + len(prepared.train["books"]) == 1000
    assert any(
        f"does not give back {changed} held-out documents of source 'books'" in sentence
        for sentence in said
    )
    assert any("changes some characters or blanks" in sentence for sentence in said)


def test_a_prepared_folder_is_a_source(made, tmp_path):
    sources, prepared = made
    folder = str(prepared.folder)
    whole = run(settings(folder), tmp_path)
    assert whole.fingerprint == prepared.fingerprint  # a bare path stands for each of its sources
    mixed = run(settings({"old": f"{folder}/notes", "new": sources["notes"]}), tmp_path)
    assert [ids.tolist() for ids in mixed.train["old"]] == [
        ids.tolist() for ids in prepared.train["notes"]
    ]
    assert mixed.tokenizer.sha256 == prepared.tokenizer.sha256 and len(mixed.train["new"]) > 0
    assert run(settings({"all": folder}), tmp_path).train["all"].tokens == sum(
        s.tokens for s in prepared.train.values()
    )
    train_bpe(["x y"], 273).save(tmp_path / "other.json")
    with pytest.raises(UserError, match="another tokenizer"):
        run(settings({"old": folder}, tokenizer=str(tmp_path / "other.json")), tmp_path)


def test_scores_are_kept_with_the_training_documents_and_folders_without_them_keep_their_name(
    made, tmp_path
):
    sources, prepared = made
    # Golden, recorded before there were scores and reserved ids: else runs that users have could not go on with their text.
    old = run(settings(sources), tmp_path / "cache", special=(EOT,))
    assert old.folder.name == "books-notes-a27969718b46" and old.fingerprint.startswith(
        "eb9227902ee17b2f"
    )
    notes = [json.loads(line) for line in Path(sources["notes"]).read_text().splitlines()]
    write(
        tmp_path / "notes.jsonl",
        [record | {"quality": (7 * i) % 60 - 0.5} for i, record in enumerate(notes)]
        + [{"text": "x", "id": "a/b"}],
    )
    entry = {"path": str(tmp_path / "notes.jsonl"), "score": "-quality"}
    with pytest.raises(
        UserError, match=r"1 of 61 records.*line 61: no score \('quality' is missing"
    ):
        run(settings({"notes": entry}), tmp_path / "cache")
    scored = run(settings({"notes": entry}, max_bad_share=0.1), tmp_path / "cache")
    train, plain = (
        scored.train["notes"],
        run(settings({"notes": entry["path"]}), tmp_path / "cache").train["notes"],
    )
    lines = [int(train.name(doc).rpartition(" ")[2]) - 1 for doc in range(len(train))]
    assert train.scores.tolist() == [(7 * line) % 60 - 0.5 for line in lines] and len(
        scored.heldout["notes"]
    )
    assert len(plain) > len(train) and plain.fingerprint != train.fingerprint
    up = run(
        settings({"notes": entry | {"score": "quality"}}, max_bad_share=0.1), tmp_path / "cache"
    )
    assert up.folder == scored.folder  # the direction is no matter of preparation
    again = run(
        settings({"notes": {"path": f"{scored.folder}/notes", "score": "quality"}}),
        tmp_path / "other",
    )
    assert again.train["notes"].scores.tolist() == train.scores.tolist()
    with pytest.raises(UserError, match=r"score is 'length'.*prepared with the score 'quality'"):
        run(
            settings({"notes": {"path": f"{scored.folder}/notes", "score": "length"}}),
            tmp_path / "other",
        )
    with pytest.raises(
        UserError, match=r"score is 'quality'.*with no score; prepare its text again"
    ):
        run(
            settings({"notes": {"path": f"{prepared.folder}/notes", "score": "quality"}}),
            tmp_path / "other",
        )


def test_text_that_was_prepared_with_other_special_tokens_is_not_used(made, tmp_path):
    sources, prepared = made
    assert list(prepared.tokenizer.special) == list(SPECIAL)
    prepared_with = {(EOT,): None, (*SPECIAL, "<|one_more|>"): None, tuple(SPECIAL): None}
    for special in prepared_with:
        prepared_with[special] = run(settings(sources), tmp_path, special=special)
        again = run(
            settings(sources), tmp_path, special=special, say=lambda sentence: pytest.fail(sentence)
        )
        assert (
            tuple(again.tokenizer.special) == special
            and again.folder == prepared_with[special].folder
        )
    assert len({found.folder for found in prepared_with.values()}) == 3
    assert prepared_with[tuple(SPECIAL)].fingerprint == prepared.fingerprint


@pytest.mark.parametrize("special", [(EOT,), tuple(SPECIAL)[:5]])
def test_a_run_keeps_the_special_tokens_of_its_tokenizer_and_a_new_run_has_all(
    special, made, tmp_path
):
    sources, _ = made
    fields = {
        "sources": sources,
        "vocab_size": 300,
        "group_by": "^(.*)/",
        "cache": str(tmp_path / "prepared"),
    }
    data = configs.DataConfig(**fields)
    began_without = run(data, tmp_path / "prepared", seed=stage.SEED, special=special)
    (tmp_path / "old").mkdir()
    began_without.tokenizer.save(tmp_path / "old" / "tokenizer.json")
    goes_on = stage.prepared_text(data, str(tmp_path / "old"))
    assert (goes_on.folder, goes_on.fingerprint) == (
        began_without.folder,
        began_without.fingerprint,
    )
    new = stage.prepared_text(data, str(tmp_path / "new"))
    assert list(new.tokenizer.special) == list(SPECIAL) and new.folder != goes_on.folder
    child = stage.prepared_text(data, str(tmp_path / "child"), init_from=str(tmp_path / "old"))
    assert (
        child.tokenizer.sha256 == began_without.tokenizer.sha256
    )  # it starts from weights that know these ids
    (tmp_path / "old" / "tokenizer.json").write_text("{")
    assert stage.prepared_text(data, str(tmp_path / "old")).folder == new.folder


def test_a_document_that_spells_special_tokens_is_prepared_as_ordinary_text(tmp_path):
    """All of them, on both sides: shards have a special id only where a document begins or ends."""
    names = [*SPECIAL, "<|im_start|>system\nYou are<|im_end|>", "<|im_start|", "<<|image|>>"]
    texts = [f"{name}{names[i % 7]} {i} {names[i % 3]}" for i in range(40) for name in names]
    write(tmp_path / "a.jsonl", [{"text": text, "id": f"{i}/a"} for i, text in enumerate(texts)])
    prepared = run(settings(str(tmp_path / "a.jsonl")), tmp_path / "cache")
    assert prepared.tokenizer.vocab_size == 300
    found = []
    for side in (prepared.train["a"], prepared.heldout["a"]):
        for doc, length in enumerate(side.lengths):
            stream = side.read(doc, 0, int(length))
            assert stream[0] == stream[-1] == prepared.tokenizer.eot
            assert stream[1:-1].min() >= len(SPECIAL)
            found.append(prepared.tokenizer.decode(stream[1:-1]))
    removed = prepared.manifest["sources"]["a"]["removed"]["documents"]
    assert (
        set(found) <= set(texts)
        and len(found) + removed == len(texts)
        and len(prepared.heldout["a"])
    )


@given(
    data=st.data(),
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    vocab=st.sampled_from([300, 70_000]),
)
def test_any_span_of_any_document_is_read_with_the_token_after_it(
    data, lengths, vocab, tmp_path_factory
):
    folder, old = tmp_path_factory.mktemp("shards"), shard_files.BLOCK
    shard_files.BLOCK = 16
    try:
        draw = np.random.default_rng(len(lengths))
        documents = [draw.integers(1, vocab, length).tolist() for length in lengths]
        with ShardWriter(
            folder, "s/train-00000.arrayrecord", "a.txt", vocab_size=vocab, eot=0, max_tokens=200
        ) as writer:
            for line, ids in enumerate(documents, 1):
                writer.add(ids, 3 * len(ids), line, line)
        sets = ShardSet(writer.shards, [str(folder)] * len(writer.shards), vocab_size=vocab)
        assert len(writer.shards) == 1 or max(shard.tokens for shard in writer.shards) < 200 + 61
        for view in (sets, pickle.loads(pickle.dumps(sets))):
            assert view.lengths.tolist() == [length + 1 for length in lengths]
            doc = data.draw(st.integers(0, len(lengths) - 1))
            offset = data.draw(st.integers(0, lengths[doc] + 1))
            count = data.draw(st.integers(0, lengths[doc] + 1 - offset))
            stream = [0, *documents[doc], 0]
            if offset < len(stream) - 1 or count:
                assert view.read(doc, offset, count).tolist() == stream[offset : offset + count + 1]
            with pytest.raises(IndexError):
                view.read(doc, offset, lengths[doc] + 2 - offset)
        assert len(pickle.dumps(sets)) < 1000 + 400 * len(writer.shards)
    finally:
        shard_files.BLOCK = old


def test_a_lost_or_cut_shard_is_made_again(made, tmp_path):
    sources, prepared = made
    again = run(settings(sources), tmp_path)
    victims = sorted(again.folder.rglob("*.arrayrecord"))
    victims[0].unlink()
    os.truncate(victims[1], victims[1].stat().st_size // 2)
    said = []
    assert run(settings(sources), tmp_path, say=said.append).fingerprint == prepared.fingerprint
    assert "missing or damaged" in said[0]
    assert [len(list(s)) for s in run(settings(sources), tmp_path).train.values()] == [
        len(s) for s in prepared.train.values()
    ]


def test_a_damaged_intermediate_result_is_made_again_and_told(made, tmp_path, monkeypatch):
    sources, prepared = made

    def stop(*arguments):
        raise InterruptedError

    monkeypatch.setattr(build, "finish_folder", stop)
    with pytest.raises(InterruptedError):
        run(settings(sources), tmp_path)
    monkeypatch.undo()
    (folder,) = (path.parent for path in tmp_path.glob(f"*/{passes.WORK}"))
    parts = [
        folder / passes.WORK / name
        for name in (
            "notes-train-00000.scan.json",
            "books-train-00001.heldout.jsonl",
            "tokenizer.json",
        )
    ]
    for number, part in enumerate(parts):
        copy, said = tmp_path / f"copy{number}", []
        shutil.copytree(folder, copy / folder.name)
        flip(copy / part.relative_to(tmp_path), 0.4)
        assert run(settings(sources), copy, say=said.append).fingerprint == prepared.fingerprint
        assert len(said) == 1 and said[0].endswith(f"{part.name} is damaged; preparing again")


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 64
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.7, 0.99])
def test_one_wrong_bit_in_prepared_text_is_found(made, tmp_path, place):
    """Tables, tokenizer and manifest before anything is read, so that the text is prepared again; tokens when they are read."""
    sources, prepared = made
    again = run(settings(sources), tmp_path)
    for victim in (*sorted(again.folder.rglob("*.npy"))[:2], again.folder / "tokenizer.json"):
        flip(victim, place)
        said = []
        assert run(settings(sources), tmp_path, say=said.append).fingerprint == prepared.fingerprint
        assert said[0].endswith("is missing or damaged; preparing again") and victim.name in said[0]
        flip(victim, place)
        with pytest.raises(
            UserError,
            match=r"missing or damaged|cannot be read|no tokenizer.json|another tokenizer",
        ):
            run(
                settings({"old": f"{again.folder}/notes", "other": f"{again.folder}/books"}),
                tmp_path / "other",
            )
        run(settings(sources), tmp_path)
    tokens = min(again.folder.glob("books/train-*.arrayrecord"))
    stored, (ids, *_) = tokens.read_bytes(), list(run(settings(sources), tmp_path).train["books"])
    first = ids[int(place * (len(ids) - 4)) :][:4].astype("<u2").tobytes()
    assert stored.count(first)
    tokens.write_bytes(stored.replace(first, bytes([first[0] ^ 64]) + first[1:], 1))
    with pytest.raises(
        UserError, match=f"{tokens.name} cannot be read or is damaged .*; delete {again.folder}"
    ):
        for shard_set in run(settings(sources), tmp_path).train.values():
            list(shard_set)


@given(data=st.data())
def test_a_changed_manifest_is_refused_or_means_the_same(made, data):
    sources, prepared = made
    manifest = json.loads(json.dumps(prepared.manifest))
    del manifest["seal"]  # as of an older version: each field is checked by itself
    place, key = manifest, data.draw(st.sampled_from(sorted(manifest)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(st.sampled_from([None, -1, 3.5, "x", [], {}, [1], {"a": 1}, True]))
    folder = prepared.folder
    kept = (folder / "manifest.json").read_text()

    def again(*arguments, **options):
        raise UserError("prepared again")

    try:
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(UserError):
            patch.setattr(preparation, "build_shards", again)
            changed = run(settings(sources), folder.parent)
            assert changed.fingerprint == prepared.fingerprint and preparation_summary(changed)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with contextlib.suppress(UserError):  # as a source of another folder
            read_manifest(folder)["sources"]["notes"]["shards"]
    finally:
        (folder / "manifest.json").write_text(kept)


def test_a_manifest_without_the_name_of_a_held_out_file_is_damaged(made, tmp_path):
    sources, _ = made
    write(tmp_path / "own.jsonl", [{"text": "A text that nothing else has.", "id": "x/1"}])
    source = {"path": sources["notes"], "heldout": str(tmp_path / "own.jsonl")}
    folder = run(settings({"books": source}), tmp_path / "cache").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    without_seal = {name: value for name, value in manifest.items() if name != "seal"}
    # Names of a file that was read are part of no other hash.
    renamed = json.dumps(manifest).replace('"own.jsonl"', '"our.jsonl"')
    assert renamed != json.dumps(manifest)
    del without_seal["sources"]["books"]["heldout_files"][0]["file"]
    for damaged in (renamed, json.dumps(without_seal)):
        (folder / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match=r"manifest.json is damaged"):
            read_manifest(folder)


def test_more_small_files_than_may_be_open_are_prepared_and_read(tmp_path):
    for i in range(150):
        (tmp_path / "text" / f"{i % 7}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / f"{i % 7}" / f"{i}.txt").write_text(
            f"the little text number {i}, which ends here"
        )
    code = """
        import resource
        prepared = go(say=lambda sentence: None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        shards.OPEN_READERS, shards.OPEN_TABLES, shard_files.IN_MEMORY = 20, 20, 0
        import functools
        shards._reader = functools.lru_cache(20)(shards._reader.__wrapped__)
        shards._table = functools.lru_cache(20)(shards._table.__wrapped__)
        texts = {prepared.tokenizer.decode(ids) for sets in (prepared.train, prepared.heldout) for ids in sets["a"]}
        print(len(texts), int(prepared.train["a"].lengths.sum()) == prepared.train["a"].tokens)
    """
    process = child(code, json.dumps({"a": str(tmp_path / "text")}), str(tmp_path / "cache"))
    output = process.communicate(timeout=100)[0]
    assert output.split() == ["150", "True"], output


def test_preparing_a_long_document_takes_a_few_bytes_for_each_of_its_own(tmp_path):
    code = """
        import resource
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        go(say=lambda sentence: None)
        print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
    """
    long, short = (
        {"text": "a b c d e f g h i j " * 400_000, "id": "long/1"},
        "short document number {} with words",
    )
    write(
        tmp_path / "a.jsonl",
        [long, *({"text": short.format(i), "id": f"{i}/1"} for i in range(60))],
    )
    process = child(code, json.dumps({"a": str(tmp_path / "a.jsonl")}), str(tmp_path / "cache"))
    # 150 MB whatever the length, and 9 bytes for each of 8 MB; without pieces it was 80 bytes for each.
    assert int(process.communicate(timeout=100)[0]) < 350_000_000


def child(code: str, *arguments: str, **options) -> subprocess.Popen:
    """A Python process that has this library, with `data(sources)` and `prepare`."""
    start = f"""
        import contextlib, json, os, signal, sys
        from types import SimpleNamespace
        sys.path.insert(0, {str(ROOT)!r})
        from slmjax.data import finish, passes, prepare as module, shard_files, shards, tokenizer_pass
        from slmjax.errors import UserError
        def go(**options):
            data = SimpleNamespace(sources=json.loads(sys.argv[1]), **{vars(settings(0)) | {"sources": 0}!r})
            return module.prepare(data, **{{"seed": 0, "cache": sys.argv[2], "processes": 1, **options}})
    """.replace("'sources': 0, ", "").replace(", 'sources': 0", "")
    program = (
        textwrap.dedent(start)
        + "if __name__ == '__main__':\n"
        + textwrap.indent(textwrap.dedent(code), "    ")
    )
    path = Path(arguments[1]).parent / f"child-{os.getpid()}-{time.monotonic_ns()}.py"
    path.write_text(program)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


KILL = """
    place, name, count = {"scan": (passes, "scan_files", 3), "train": (tokenizer_pass, "train_bpe", 1), "collect": (passes, "collect", 1),
                          "add": (shards.ShardWriter, "add", 90), "heldout": (finish, "_write_heldout", 2)}[sys.argv[3]]
    original, calls = getattr(place, name), []
    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(place, name, wrapped)
    go()
"""


def test_a_run_killed_again_and_again_continues_to_the_same_result(made, tmp_path):
    sources, prepared = made
    for place in ("scan", "train", "collect", "add", "add", "heldout"):
        process = child(KILL, json.dumps(sources), str(tmp_path / "cache"), place)
        output = process.communicate(timeout=100)[0]
        if place == "add" and process.returncode == 0:
            continue
        assert process.returncode == -signal.SIGKILL, output
    units = sorted(tmp_path.rglob("*.train.json"))
    assert len(units) == 5
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("train-*.arrayrecord")}
    final = run(settings(sources), tmp_path / "cache")
    assert final.fingerprint == prepared.fingerprint
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("train-*.arrayrecord")
    } == before  # finished units were kept
    assert not list(final.folder.rglob(".tmp*")) and not (final.folder / "work").exists()


def test_worker_processes_end_with_a_killed_parent(made, tmp_path):
    sources, _ = made
    process = child(
        "go(processes=2)", json.dumps(sources), str(tmp_path / "cache"), start_new_session=True
    )

    def group() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[2]) == process.pid and fields[0] != "Z":
                    found.append(path.parent.name)
        return found

    deadline = time.monotonic() + 60
    while len(group()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    while group() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group()


@pytest.mark.parametrize("lock", [True, False])
def test_two_runs_at_once_end_with_one_valid_result(made, tmp_path, lock):
    sources, prepared = made
    code = (
        "" if lock else "module.locked = lambda *arguments: contextlib.nullcontext()\n"
    ) + "print(go().fingerprint)"
    both = [child(code, json.dumps(sources), str(tmp_path / "cache")) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [output.split()[-1] for output in outputs] == [prepared.fingerprint] * 2, "\n".join(
        outputs
    )
    assert run(settings(sources), tmp_path / "cache").fingerprint == prepared.fingerprint


def test_hosts_share_the_units_and_agree(made, tmp_path, monkeypatch):
    sources, prepared = made
    done: dict[str, set] = {}
    original = passes.tokenize

    def counted(job, chosen):
        done.setdefault(job.unit.name, set()).add(threading.current_thread().name)
        original(job, chosen)

    monkeypatch.setattr(passes, "tokenize", counted)
    with ThreadPoolExecutor(3) as pool:
        hosts = [
            pool.submit(
                run, settings(sources), tmp_path, process_index=i, process_count=3, timeout=60
            )
            for i in range(3)
        ]
        assert {host.result().fingerprint for host in hosts} == {prepared.fingerprint}
    assert (
        len(done) == 5
        and all(len(threads) == 1 for threads in done.values())
        and len(set.union(*done.values())) == 3
    )


def test_a_host_that_never_comes_is_reported(made, tmp_path):
    sources, _ = made
    with pytest.raises(UserError, match="waited 0 s for process 0 to hash the text"):
        run(settings(sources), tmp_path, process_index=1, process_count=2, timeout=0.2)


def test_a_host_that_waits_says_where_and_for_how_many_again_and_again(made, tmp_path, monkeypatch):
    sources, _ = made
    monkeypatch.setattr(work, "FIRST_LINE", 0.1)
    monkeypatch.setattr(work, "NEXT_LINE", 0.3)
    said = []
    with pytest.raises(UserError, match="waited 1 s"):
        run(
            settings(sources),
            tmp_path,
            process_index=1,
            process_count=3,
            timeout=1.0,
            say=said.append,
        )
    expected = rf"waiting in {tmp_path}/\.identity for 2 processes \(0, 2\) to hash the text: 3 of their files missing"
    assert len(said) >= 3 and all(re.match(expected, sentence) for sentence in said)


def test_too_many_bad_records_are_an_error_that_shows_the_first_and_fewer_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [{"text": f"text number {i}", "id": f"{i}/0"} for i in range(97)])
    with path.open("ab") as stream:
        stream.write(b'{"text": "\xff"}\n{broken\n{"text": ""}\n')
    expected = r"3 of 100 records \(3\.00%.*max_bad_share=0\.02.*a\.jsonl line 98: invalid UTF-8.*line 99: malformed"
    with pytest.raises(UserError, match=expected):
        run(settings({"a": str(path)}, max_bad_share=0.02), tmp_path / "cache")
    assert not [
        entry for entry in (tmp_path / "cache").iterdir() if not entry.name.startswith(".")
    ]  # nothing half-made stays
    prepared = run(settings({"a": str(path)}, max_bad_share=0.03), tmp_path / "cache")
    assert prepared.manifest["sources"]["a"]["faults"] == {
        "invalid UTF-8": 1,
        "malformed JSON": 1,
        "empty document": 1,
    }
    with pytest.raises(
        UserError, match="max_bad_share"
    ):  # a stricter limit holds for what is already prepared
        run(settings({"a": str(path)}, max_bad_share=0.02), tmp_path / "cache")


def test_a_cut_file_counts_with_its_size(tmp_path):
    import lzma

    for i in range(3):
        lines = (
            json.dumps({"text": f"{i} {j} {random.random()}", "id": f"{j}/x"}) for j in range(2000)
        )
        data = lzma.compress("\n".join(lines).encode())
        (tmp_path / f"{i}.jsonl.xz").write_bytes(data if i else data[: len(data) // 2])
    with pytest.raises(UserError, match=r"0\.jsonl\.xz line \d+: damaged file"):
        run(settings({"a": str(tmp_path / "*.xz")}, max_bad_share=0.1), tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ""}, "data.sources is empty"),
        ({"sources": "nothing-here/*.txt"}, "matches no file"),
        ({"group_by": "re:nowhere"}, "'re:nowhere' matches the id of no document"),
        ({"group_by": "boook"}, "data.group_by needs 'boook', which is missing.*'book'"),
        ({"group_by": "("}, "no regular expression"),
        ({"tokenizer": "none.json"}, "none.json"),
        (
            {"vocab_size": 271},
            r"data.vocab_size is 271.*at least 272 \(16 special tokens and 256 bytes\)",
        ),
        ({"cache": "gs://bucket/x"}, "folder of this machine"),
        ({"cache": "/proc/x"}, "data.cache: cannot write to /proc/x|No such file"),
        ({"cache": "FILE/x"}, "cannot write to .*FILE/x"),
    ],
)
def test_a_mistake_in_the_settings_is_named(tmp_path, changes, message):
    write(
        tmp_path / "a.jsonl", [{"text": f"text {i}", "id": f"{i}", "book": "b"} for i in range(10)]
    )
    (tmp_path / "FILE").write_text("")
    cache = str(changes.pop("cache", tmp_path / "cache")).replace("FILE", str(tmp_path / "FILE"))
    with pytest.raises(UserError, match=message):
        run(
            settings(**{"sources": {"a": str(tmp_path / "a.jsonl")}, "group_by": "", **changes}),
            cache,
        )


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path):
    sources = corpus(tmp_path, files=2, documents=300)
    code = """
        import resource  # a limit on the size of files is the nearest thing to a full disk that needs no rights
        original = passes.tokenize
        def limited(*arguments):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            original(*arguments)
        passes.tokenize = limited
        try:
            go()
        except UserError as error:
            print("UserError:", error)
    """
    output = child(code, json.dumps(sources), str(tmp_path / "cache")).communicate(timeout=100)[0]
    assert "UserError: data.cache: no space left" in output, output
    assert not [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.name.startswith(".tmp") or path.suffix == ".arrayrecord"
    ]


def test_a_huge_file_is_read_in_little_memory(tmp_path):
    record = json.dumps({"text": "some words to read " * 500}) + "\n"
    (tmp_path / "a.jsonl").write_text(record * 3000)
    (source,) = parse_sources(str(tmp_path / "a.jsonl"))
    tracemalloc.start()
    try:
        assert (
            sum(document.bytes for document in read_documents(list_files(source)[0], source))
            == 3000 * 9500
        )
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_refusal_names_each_reason_once(tmp_path):
    for name in ("a", "b"):
        lines = ['{"content": "some"}'] * 9 + ["no JSON"] * 9
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        run(settings({"web": str(tmp_path / "*.jsonl")}), tmp_path / "cache")
    sentence = str(error.value)
    assert sentence.count("no text") == sentence.count("malformed JSON") == 1
    assert "36 of 36 records" in sentence and "a.jsonl line 1: no text" in sentence
