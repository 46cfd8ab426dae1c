"""Dialogues and pairs in the stage curate: kept as they came or dropped, and trained on as such."""

import json
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from slmjax import config as configs
from slmjax import launch
from slmjax.cli.recipe_options import apply_overrides, read_options
from slmjax.curate import curate_stage as stage
from slmjax.curate.minhash import Scheme, sketch
from slmjax.curate.whole_records import SHINGLES, searched_texts, stand_in
from slmjax.text.chat_documents import chat_document
from slmjax.text.readers import read_documents
from slmjax.text.records import CHAT, PAIRS, Fault, Record, Source
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources
from tests.curate.test_curate_stage import digests, documents, lines, prose

# Each has 11 words that count. An item needs 13 words, so that neither is found alone.
QUESTION = "why do seven grey herons wait beside frozen canals every winter"
ANSWER = "because warm water from laundries keeps small fish near the surface"
BANAL = "I would ask somebody who lives there."
# Normalising would change both: blanks at line ends, a ligature of two code points.
ODD = "Two blanks  \nand cafe\u0301."


def chat(question, answer, **more):
    return {"prompt": question, "response": answer, **more}


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def turns(question, answer):
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said}


LONG = "It lies in the north of the town, two streets behind the old market, and opens at nine."
CHATS = [
    chat("Where is the library?", LONG, id="a"),
    chat("Where is the library?", LONG.replace("nine", "ten"), id="near copy"),
    {**turns("Where is the library? ", LONG), "id": "a in another variant"},
    chat(QUESTION, ANSWER, id="an item in two turns"),
    chat(QUESTION, BANAL, id="half an item"),
    chat("Say it.", ODD, id="odd", score=0.5, tags=["é", None]),
    {"prompt": "No answer?", "id": "fault"},
]
KEPT_CHATS = ["a", "near copy", "half an item", "odd"]
PAIRS_READ = [
    pair(QUESTION, ANSWER, BANAL, id="item in chosen"),
    pair(QUESTION, BANAL, ANSWER, id="item in rejected"),
    pair(QUESTION, BANAL, "Nobody knows.", id="half an item"),
    pair("Where?", LONG, ODD, id="b"),
    pair(" Where?", LONG, ODD, id="b again"),
    pair("Where?", ODD, LONG, id="b the other way"),
    pair("Where?", LONG, ODD, id="b with its passage", context="The town has a library."),
    pair("Where?", "Here.", "Here.", id="fault"),
]
KEPT_PAIRS = ["half an item", "b", "b the other way", "b with its passage"]


def records(file, entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A source of each kind, and an evaluation set of one item."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    records(folder / "chats.jsonl", CHATS)
    records(folder / "pairs.jsonl", PAIRS_READ)
    lines(folder / "text.jsonl", *(prose(rng) for _ in range(3)), "Too short.")
    records(folder / "evals.jsonl", [{"question": QUESTION, "answer": ANSWER}])
    return folder


def curated(workdir, sources, *more):
    """Return the exit status of the stage; sources are {name: (path, kind)}."""
    named = ",".join(f"{name}={path}" for name, (path, _) in sources.items())
    words = [f"--config.data.sources.{name}.kind={kind}" for name, (_, kind) in sources.items()]
    words += [f"--config.curate.{word}" for word in ("processes=1", *more)]
    recipe = ["--config=configs/curate.py", f"--workdir={workdir}"]
    return launch.main([*recipe, f"--config.data.sources={named}", *words])


def all_kinds(raw):
    return {
        "chats": (raw / "chats.jsonl", CHAT),
        "pairs": (raw / "pairs.jsonl", PAIRS),
        "text": (raw / "text.jsonl", "text"),
    }


def evals(raw):
    fields = {"path": str(raw / "evals.jsonl"), "fields": ("question", "answer")}
    return f"evals={ {'herons': fields} }"


def entries(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def source_read(source):
    """Return {id of its record: document} of a source, without the faults."""
    documents_of_source = {}
    for file in list_files(source):
        for item in read_documents(file, source):
            if not isinstance(item, Fault):
                documents_of_source[item.record["id"]] = item
    return documents_of_source


def test_records_stay_as_they_came_or_are_dropped_for_an_item_or_an_equal_one(raw, tmp_path):
    run = tmp_path / "run"
    assert curated(run, all_kinds(raw), evals(raw), "rules.others=gopher_quality") == 0
    left = documents(run)
    assert left["chats"] == [entry for entry in CHATS if entry["id"] in KEPT_CHATS]
    assert left["pairs"] == [entry for entry in PAIRS_READ if entry["id"] in KEPT_PAIRS]
    assert len(left["text"]) == 3  # gopher_quality has dropped one: only text has rules
    dropped = [
        (entry["file"], entry["line"], entry["reason"]) for entry in entries(run / "dropped.jsonl")
    ]
    assert dropped == [
        ("chats/chats.jsonl", 4, "contaminated: herons"),
        ("pairs/pairs.jsonl", 1, "contaminated: herons"),
        ("pairs/pairs.jsonl", 2, "contaminated: herons"),
        ("text/text.jsonl", 4, "gopher_quality: too few words"),
    ]
    same = [
        (entry["file"], entry["line"], entry["kept_line"], entry["found"])
        for entry in entries(run / "duplicates.jsonl")
    ]
    assert same == [
        ("chats/chats.jsonl", 3, 1, "same text"),
        ("pairs/pairs.jsonl", 5, 4, "same text"),
    ]
    counts = json.loads((run / "report.json").read_text())["sources"]
    assert counts["chats"]["faults"] == {"no conversation": 1}
    assert counts["pairs"]["faults"] == {"equal answers": 1}
    answers = [answer for entry in left["pairs"] for answer in (entry["chosen"], entry["rejected"])]
    assert counts["pairs"]["left"]["bytes"] == sum(len(answer.encode()) for answer in answers)


def test_the_printed_commands_train_on_the_same_dialogues(raw, tmp_path, capsys):
    assert curated(tmp_path / "run", all_kinds(raw), evals(raw)) == 0
    printed = capsys.readouterr().out.partition("next:")[2].strip().splitlines()
    read = {}
    for line in printed:
        options, assignments = read_options(shlex.split(line)[3:])
        assert Path(options["config"]).is_file()
        config = apply_overrides(configs.base(), assignments)
        for source in parse_sources(configs.freeze(config).data.sources):
            read[source.name, source.kind] = source
    assert set(read) == {("text", "text"), ("chats", CHAT), ("pairs", PAIRS)}
    for name, kind, kept in (("chats", CHAT, KEPT_CHATS), ("pairs", PAIRS, KEPT_PAIRS)):
        before = source_read(Source(name, (str(raw / f"{name}.jsonl"),), kind=kind))
        after = source_read(read[name, kind])
        assert list(after) == kept
        for name_of_record, document in after.items():
            assert document.parts == before[name_of_record].parts
            assert document.group == before[name_of_record].group
            assert document.record == before[name_of_record].record


@pytest.mark.parametrize("stopped_at", ["Index", "publish"])
def test_a_stopped_run_goes_on_and_does_no_file_twice(raw, tmp_path, stopped_at, monkeypatch):
    assert curated(tmp_path / "one" / "run", all_kinds(raw), evals(raw)) == 0
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(stage, stopped_at, None)
        curated(tmp_path / "two" / "run", all_kinds(raw), evals(raw))
    monkeypatch.setattr(stage, "clean", lambda unit: pytest.fail(f"{unit.stem} is done again"))
    assert curated(tmp_path / "two" / "run", all_kinds(raw), evals(raw)) == 0
    assert digests(tmp_path / "one" / "run") == digests(tmp_path / "two" / "run")


def test_a_stopped_run_of_another_kind_is_not_gone_on_with(tmp_path, monkeypatch):
    """As dialogues the two records are equal; as pairs they are not."""
    both = [
        pair("Where?", "Here.", rejected, response="Here.", id=rejected)
        for rejected in ("There.", "Nowhere.")
    ]
    file = records(tmp_path / "both.jsonl", both)
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(stage, "Index", None)
        curated(tmp_path / "run", {"both": (file, CHAT)})
    assert curated(tmp_path / "run", {"both": (file, PAIRS)}) == 0
    assert documents(tmp_path / "run")["both"] == both
    assert curated(tmp_path / "run", {"both": (file, CHAT)}) == 0
    assert documents(tmp_path / "run")["both"] == both[:1]


def test_a_second_batch_leaves_out_dialogues_that_the_index_has_seen(tmp_path):
    first = records(tmp_path / "first.jsonl", [CHATS[0], pair("Where?", LONG, ODD)])
    second = records(tmp_path / "second.jsonl", CHATS[1:3])
    index = f"index={tmp_path / 'index'}"
    assert curated(tmp_path / "one", {"first": (first, CHAT)}, index) == 0
    assert curated(tmp_path / "two", {"second": (second, CHAT)}, index) == 0
    assert documents(tmp_path / "two")["second"] == [CHATS[1]]
    (seen,) = entries(tmp_path / "two" / "duplicates.jsonl")
    assert (seen["line"], seen["kept_file"], seen["kept_line"]) == (2, "first/first.jsonl", 1)
    # The same records as pairs are no copies of dialogues.
    assert curated(tmp_path / "three", {"pairs": (first, PAIRS)}, index) == 0
    assert documents(tmp_path / "three")["pairs"] == [pair("Where?", LONG, ODD)]


@pytest.mark.beam
@pytest.mark.slow
def test_beam_leaves_the_bytes_of_one_process(raw, tmp_path):
    pytest.importorskip("apache_beam")
    assert curated(tmp_path / "one" / "run", all_kinds(raw), evals(raw)) == 0
    beam = "beam=--runner=DirectRunner"
    assert curated(tmp_path / "beam" / "run", all_kinds(raw), evals(raw), beam) == 0
    assert digests(tmp_path / "one" / "run") == digests(tmp_path / "beam" / "run")


def document(record, kind):
    return chat_document(Record(record, 1), Source("s", ("s.jsonl",), kind=kind))


def test_each_dialogue_of_a_pair_is_searched_by_itself():
    """Otherwise one half of an item in each answer would make a whole one."""
    read = document(pair("Q?", "A.", "B.", system="S.", context="C."), PAIRS)
    assert searched_texts(read, PAIRS) == ["S.\n\nC.\n\nQ?\n\nA.", "S.\n\nC.\n\nQ?\n\nB."]


@pytest.mark.parametrize("ngram", [1, 5, 13])
def test_conversations_that_differ_have_no_shingle_in_common(ngram):
    said = [
        (chat("Q?", "A."), CHAT),
        (chat("Q?", "A.", system="S."), CHAT),
        ({"messages": turns("Q?", "A.")["messages"] * 2}, CHAT),
        (chat("Q?\n\nA.", "B."), CHAT),
        (chat("Q?", "A.\n\nB."), CHAT),
        (pair("Q?", "A.", "B."), PAIRS),
        (pair("Q?", "B.", "A."), PAIRS),
    ]
    texts = [stand_in(document(record, kind), kind, ngram).text for record, kind in said]
    sketches = sketch(texts, Scheme(ngram=ngram))
    assert sketches.counts.tolist() == [SHINGLES] * len(said)
    assert max(Counter(sketches.shingles.tolist()).values()) == 1


@pytest.mark.parametrize(
    "word, message",
    [
        (
            "rules.chats=gopher_quality",
            "rules.chats is gopher_quality, but data.sources.chats.kind",
        ),
        (
            "languages.pairs=en,de",
            "languages.pairs is en,de, but data.sources.pairs.kind is 'pairs'",
        ),
    ],
)
def test_rules_of_text_that_name_conversations_are_refused(raw, tmp_path, word, message, capsys):
    assert curated(tmp_path / "run", all_kinds(raw), word) == 2
    assert message in capsys.readouterr().err


def test_rules_of_all_other_sources_are_reported_as_skipped(raw, tmp_path, capsys):
    words = ("rules.others=gopher_quality", "rules.pairs=")
    assert curated(tmp_path / "run", all_kinds(raw), *words) == 0
    skipped = "config.curate.rules.others (gopher_quality) is skipped"
    assert capsys.readouterr().out.count(skipped) == 2
    (chats, pairs) = json.loads((tmp_path / "run" / "report.json").read_text())["notes"]
    assert "'chats' (kind 'chat')" in chats and "'pairs' (kind 'pairs')" in pairs
    assert chats.replace("'", "&#x27;") in (tmp_path / "run" / "report.html").read_text()


def test_pairs_that_are_mostly_evaluation_items_raise_an_alarm(raw, tmp_path, capsys):
    file = records(tmp_path / "pairs.jsonl", PAIRS_READ[:3])
    assert curated(tmp_path / "run", {"pairs": (file, PAIRS)}, evals(raw)) == 2
    assert "loses 66.7% of its documents to contaminated" in capsys.readouterr().err
    assert not (tmp_path / "run" / "documents").exists()
