"""Items of evaluation sets are found in training text of every kind, and accuracy is cut by coverage."""

import json

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evals.training_coverage import (
    by_coverage,
    prepared_texts,
    source_texts,
    training_coverage,
)
from slmjax.text.sources import parse_sources
from tests.data.test_prepare import run, settings

QUESTION = (
    "A gardener plants rows of tulips beside the stone wall every spring, and each row holds "
    "several bulbs that the neighbour brought back from a market near the harbour in winter."
)
OTHER = (
    "The old ferry crosses the wide river before sunrise while its captain counts empty crates "
    "that merchants left on the wooden pier after loading sacks of barley yesterday evening."
)
UNSEEN = (
    "Two painters share brushes inside a cold studio whose tall windows face the railway, so they "
    "argue about heating whenever snow settles upon the flat roof above their unfinished canvases."
)
SHORT = "How many rows?"


@pytest.fixture
def sets(tmp_path):
    """Two sets; the first item of the second one is the second item of the first one."""
    items = {"first": [UNSEEN, QUESTION, SHORT], "second": [QUESTION, OTHER]}
    settings = {}
    for name, questions in items.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
        settings[name] = {"path": str(path), "fields": ["question"]}
    return settings


def test_a_copy_counts_for_every_item_with_its_words_and_for_no_other(sets):
    texts = [("web", "Nothing is here."), ("web", f"Once. {QUESTION.upper()} Then."), ("code", "x")]
    coverage = training_coverage(sets, texts)
    assert coverage.documents == {"web": 2, "code": 1} and not coverage.faults
    first, second = coverage.sets["first"], coverage.sets["second"]
    assert first.copied.tolist() == [0, 1, 0] and second.copied.tolist() == [1, 0]
    assert first.familiar.tolist() == [0, 1, 0] and second.familiar.tolist() == [1, 0]
    assert first.decided.tolist() == [True, True, False] and second.decided.all()
    assert first.hits == second.hits == {"web": 1, "code": 0}
    assert [(copy.source, copy.coverage) for copy in coverage.found] == [("web", 1.0)]
    assert "TULIPS BESIDE THE STONE WALL" in coverage.found[0].passage


def test_familiar_words_are_counted_over_all_documents_as_written_out(sets):
    words = OTHER.rstrip(".").lower().split()
    # Two documents hold some runs of OTHER; none holds enough of it to be a copy.
    pieces = [" ".join(words[2:9]), "so " + " ".join(words[6:13])]
    coverage = training_coverage(sets, [("web", piece) for piece in pieces])
    runs = {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
    seen = {tuple(w[i : i + 5]) for w in map(str.split, pieces) for i in range(len(w) - 4)}
    covered = set()
    for i in range(len(words) - 4):
        if tuple(words[i : i + 5]) in runs & seen:
            covered |= set(range(i, i + 5))
    assert coverage.sets["second"].familiar[1] == pytest.approx(len(covered) / len(words))
    assert not coverage.sets["second"].copied.any()


def test_texts_dialogues_and_pairs_of_sources_are_searched_and_untrained_ones_are_not(
    sets, tmp_path
):
    half = QUESTION.index("and each row")
    turns = [("user", QUESTION[:half]), ("assistant", QUESTION[half:])]
    records = {
        "plain": {"text": QUESTION},
        "dialogue": {"messages": [{"role": r, "content": c} for r, c in turns]},
        "pair": {"prompt": OTHER[:90], "chosen": "I do not know.", "rejected": OTHER[90:]},
        "unused": {"text": UNSEEN},
    }
    sources = {}
    for name, record in records.items():
        path = tmp_path / f"source-{name}.jsonl"
        path.write_text(json.dumps(record) + "\n")
        kind = {"dialogue": "chat", "pair": "pairs"}.get(name, "text")
        sources[name] = {"path": str(path), "kind": kind}
    sources["unused"]["weight"] = 0
    with open(sources["plain"]["path"], "a") as file:
        file.write("no record\n")
    coverage = training_coverage(sets, source_texts(parse_sources(sources)))
    assert coverage.documents == {"plain": 1, "dialogue": 1, "pair": 2}
    assert coverage.faults == {"plain": 1}
    assert coverage.sets["first"].hits == {"plain": 1, "dialogue": 1, "pair": 0}
    assert coverage.sets["second"].hits == {"plain": 1, "dialogue": 1, "pair": 1}


def test_prepared_text_is_searched_without_what_is_held_out(sets, tmp_path):
    texts = {"books": [f"{QUESTION} {n}" for n in range(9)], "code": ["no item"] * 9}
    for name, documents in texts.items():
        lines = [json.dumps({"text": text, "id": f"{n}/"}) for n, text in enumerate(documents)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in texts}
    prepared = run(settings(sources, heldout=0.3), tmp_path / "cache")
    coverage = training_coverage(sets, prepared_texts(prepared))
    assert coverage.documents == {name: len(prepared.train[name]) for name in texts}
    assert 0 < coverage.documents["books"] < 9
    assert coverage.sets["first"].hits == {"books": 1, "code": 0}


def test_nothing_read_is_no_result(sets):
    with pytest.raises(UserError, match="no training document could be read"):
        training_coverage(sets, [])
    with pytest.raises(UserError, match=r"data.sources.web: 1 documents could be read and 2 c"):
        training_coverage(sets, [("code", "a")] * 9 + [("web", "a")] + [("web", None)] * 2)


def test_accuracy_is_cut_at_zero_and_at_the_quartiles_of_the_rest():
    coverage = np.array([0, 0, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    right = np.array([1, 0, 0, 0, 0, 1, 1, 0, 1, 1], bool)
    rows = by_coverage(coverage, right)
    assert [(row["from"], row["to"], row["items"]) for row in rows] == [
        (0, 0, 2),
        (0.1, 0.2, 3),
        (0.3, 0.3, 1),
        (0.4, 0.5, 2),
        (0.6, 0.7, 2),
    ]
    assert [row["accuracy"] for row in rows] == [0.5, 0, 1, 0.5, 1]
    assert by_coverage(np.zeros(3), right[:3]) == [
        {"from": 0, "to": 0, "items": 3, "accuracy": pytest.approx(1 / 3)}
    ]
    with pytest.raises(ValueError, match="no items"):
        by_coverage(np.zeros(0), np.zeros(0, bool))
