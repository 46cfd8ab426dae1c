"""The bench of near-duplicates: its scores against hand-made answers, its text as described, and both of its commands at small size."""

import argparse
import itertools
import json
import lzma

import numpy as np
import pytest

from slmjax.bench import find_duplicates as dedup
from slmjax.bench.peers import minhash_libraries as dedup_peers
from slmjax.errors import UserError

TEXTS = [
    "a b c d e f g h",
    "a b c d e f g x",
    "p q r s t u v w",
    "a b c d e f g h",
    "p q r s t u v z",
]


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder like the shared one, with few and short texts."""
    rng = np.random.default_rng(0)

    def write(name, records):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(file, "wt", encoding="utf8") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)

    for name in ("docversions", "editions"):
        write(f"dedup/{name}_docs.jsonl.xz", [{"text": text} for text in TEXTS])
    write(
        "pretrain/books/books-000.jsonl.xz",
        [{"text": " ".join(f"w{n}" for n in rng.integers(0, 9999, 6000))} for _ in range(3)],
    )
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))
    return tmp_path


def asked(**changed):
    return argparse.Namespace(
        **{
            "quality": False,
            "documents": 60,
            "length": 600,
            "processes": 1,
            "runs": 1,
            "no_peers": True,
        }
        | changed
    )


def test_similarities_are_those_of_sets():
    sets = [dedup_peers.word_shingles(text) for text in TEXTS]
    for i, j in itertools.product(range(5), repeat=2):
        assert dedup.similarities(sets)[i, j] == pytest.approx(
            len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        )


def test_a_wrong_removal_costs_precision_and_a_missed_one_recall():
    exact = dedup.similarities(
        [dedup_peers.word_shingles(text) for text in TEXTS]
    )  # 0, 1 and 3 are near, 2 and 4, by 0.6
    perfect = dedup.scores(np.array([0, 0, 2, 0, 2]), exact, 0.6)
    assert (perfect["precision"], perfect["recall"], perfect["left"], perfect["exact"]) == (
        1,
        1,
        0,
        3,
    )
    wrong = dedup.scores(
        np.array([0, 0, 0, 0, 4]), exact, 0.6
    )  # 2 goes though only 4 is near it, and 4 stays
    assert (wrong["precision"], wrong["recall"]) == (1, pytest.approx(2 / 3))
    worse = dedup.scores(np.array([0, 0, 0, 0, 0]), exact, 0.6)
    assert worse["precision"] == 0.5 and worse["recall"] == 1
    missed = dedup.scores(np.array([0, 1, 2, 0, 4]), exact, 0.6)
    assert missed["recall"] == pytest.approx(1 / 3) and missed["left"] == 2


def test_quality_and_speed_give_rows(shared):
    rows = dedup.run(asked(quality=True))["rows"]
    assert {row["who"] for row in rows} == {"slmjax"} and all(row["precision"] == 1 for row in rows)
    (row,) = dedup.run(asked())["rows"]
    assert (
        row["documents"] == 60
        and 0 < row["removed"] < 30
        and row["documents_per_second"] == pytest.approx(60 / row["seconds"])
    )


def test_half_of_the_text_is_unique_and_the_other_half_in_clusters(shared):
    files = dedup.write_planted(shared, shared / "text", 60, 600)
    texts = [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]
    assert (
        len(texts) == 60
        and dedup.write_planted(shared, shared / "again", 60, 600)[0].read_text()
        == files[0].read_text()
    )
    exact = dedup.similarities([dedup_peers.word_shingles(text) for text in texts]) - np.eye(60)
    assert 28 <= (exact.max(1) < 0.1).sum() < 60


def test_too_little_text_and_a_missing_folder_are_told(shared, monkeypatch):
    with pytest.raises(UserError, match="at least 6000 are needed"):
        dedup.run(asked(documents=10_000))
    monkeypatch.setenv("SLMJAX_SHARED", "/nowhere/at/all")
    with pytest.raises(UserError, match="is no folder"):
        dedup.run(asked())
