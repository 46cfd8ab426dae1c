"""Deduplication of files: one index for several batches, whatever the number of processes; a killed run goes on."""

import itertools
import json

import numpy as np
import pytest
from etils import epath

from slmjax.curate import index as indices
from slmjax.curate import sketch_files
from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme
from slmjax.curate.near_duplicates import decisions, deduplicate
from slmjax.errors import UserError
from slmjax.text.records import Document, Source

SMALL = Scheme(ngram=2, bands=10, rows=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of 150 documents: half of them changed copies of ten texts."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    words = lambda n: [f"w{rng.integers(10**9)}" for _ in range(n)]
    bases = [words(40) for _ in range(10)]
    for name in ("a", "b"):
        lines = []
        for i in range(150):
            text = words(40) if i % 2 else list(bases[rng.integers(10)])
            text[rng.integers(40)] = "changed"
            lines.append(json.dumps({"text": " ".join(text)}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def sources(files, *names):
    return [Source(name, (str(files / f"{name}.jsonl"),)) for name in names]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_files_of_sketches_are_closed_where_the_last_chunk_fails(tmp_path, monkeypatch):
    def fail(texts, scheme):
        raise MemoryError

    monkeypatch.setattr(sketch_files, "sketch", fail)
    writer = sketch_files.SketchWriter(epath.Path(tmp_path / "sketches"), SMALL)
    with pytest.raises(MemoryError), writer:
        writer.add(Document("some words", group="", line=1, bytes=10, key=1))
    assert all(file._file.closed for file in writer._files.values())


def test_a_second_batch_against_the_index_equals_one_run_over_both(files, tmp_path):
    _, together = deduplicate(sources(files, "a", "b"), tmp_path / "one", scheme=SMALL)
    _, first = deduplicate(sources(files, "a"), tmp_path / "two", scheme=SMALL)
    index, both = deduplicate(sources(files, "b"), tmp_path / "two", scheme=SMALL)
    assert same(together, both) and same(first, [of[:150] for of in both])
    assert len(both.removed) > 100 and len(first.removed) > 40
    again, unchanged = deduplicate(sources(files, "b"), tmp_path / "two", scheme=SMALL)
    assert len(again) == len(index) == 300 and same(unchanged, both)


def test_two_processes_and_small_chunks_give_the_same(files, tmp_path, monkeypatch):
    _, one = deduplicate(sources(files, "a", "b"), tmp_path / "one", scheme=SMALL)
    _, two = deduplicate(sources(files, "a", "b"), tmp_path / "two", scheme=SMALL, processes=2)
    monkeypatch.setattr(sketch_files, "CHUNK", 700)
    _, three = deduplicate(sources(files, "a", "b"), tmp_path / "three", scheme=SMALL)
    assert same(one, two) and same(one, three)
    for file in tmp_path.joinpath("one").iterdir():
        if file.is_file() and file.name != "index.json":
            assert file.read_bytes() == tmp_path.joinpath("three", file.name).read_bytes()


def test_decisions_name_both_documents(files, tmp_path):
    index, clusters = deduplicate(sources(files, "a", "b"), tmp_path, scheme=SMALL)
    texts = {
        f"{n}/{n}.jsonl": [
            json.loads(line)["text"] for line in (files / f"{n}.jsonl").read_text().splitlines()
        ]
        for n in "ab"
    }
    told = list(decisions(index, clusters))
    assert len(told) == len(clusters.removed)
    for entry in told:
        places = (entry["file"], entry["line"]), (entry["kept_file"], entry["kept_line"])
        a, b = (set(itertools.pairwise(texts[file][line - 1].split())) for file, line in places)
        assert (
            entry["similarity"] == pytest.approx(len(a & b) / len(a | b), abs=1e-4)
            and entry["similarity"] >= 0.75
        )
        assert (entry["kept_file"], entry["kept_line"]) < (entry["file"], entry["line"])


@pytest.mark.parametrize(
    "other",
    [Scheme(ngram=3, bands=10, rows=3), Scheme(ngram=2, bands=5, rows=6), Scheme(2, 10, 3, seed=2)],
)
def test_an_index_of_another_scheme_is_refused(files, tmp_path, other):
    deduplicate(sources(files, "a"), tmp_path, scheme=SMALL)
    with pytest.raises(UserError, match=r"holds sketches of scheme .* asks for"):
        Index(tmp_path, other)


def test_what_a_killed_call_had_added_is_cut_off(files, tmp_path):
    deduplicate(sources(files, "a"), tmp_path / "cut", scheme=SMALL)
    for file in tmp_path.joinpath("cut").iterdir():
        if file.is_file() and file.name != "index.json":
            with open(file, "ab") as stream:
                stream.write(b"half a column")
    _, found = deduplicate(sources(files, "b"), tmp_path / "cut", scheme=SMALL)
    _, whole = deduplicate(sources(files, "a", "b"), tmp_path / "whole", scheme=SMALL)
    assert same(found, whole)


def test_an_empty_index_has_no_clusters(tmp_path):
    assert len(Index(tmp_path, SMALL).clusters(0.75).keeper) == 0


def test_a_damaged_index_is_refused_by_its_file_and_never_read(files, tmp_path):
    deduplicate(sources(files, "a"), tmp_path / "index", scheme=SMALL)
    whole = {
        name: (tmp_path / "index" / name).read_bytes() for name in ("index.json", *indices.KEPT)
    }
    rng = np.random.default_rng(0)
    for trial in range(200):
        name = list(whole)[trial % len(whole)]
        data = bytearray(whole[name])
        if trial % 3:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            del data[rng.integers(len(data)) :]
        (tmp_path / "index" / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}|sketches of"):
            Index(tmp_path / "index", SMALL)
        (tmp_path / "index" / name).write_bytes(whole[name])


def test_an_index_of_counts_that_do_not_add_up_is_refused_without_checksums_too(files, tmp_path):
    deduplicate(sources(files, "a"), tmp_path / "index", scheme=SMALL)
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    for batch in manifest["batches"]:
        del batch["crc32"]
    del manifest["seal"]
    (tmp_path / "index" / "index.json").write_text(json.dumps(manifest))
    assert len(Index(tmp_path / "index", SMALL)) == 150
    counts = np.fromfile(tmp_path / "index" / "counts", "<i8")
    for change in ([1 << 40, 0], [-5, 5], [0, counts[0] + counts[1]]):
        changed = counts.copy()
        changed[:2] = change
        changed.tofile(tmp_path / "index" / "counts")
        with pytest.raises(UserError, match=r"counts is damaged \(it does not add up"):
            Index(tmp_path / "index", SMALL)


def test_what_was_added_last_can_be_forgotten_and_is_not_there_afterwards(files, tmp_path):
    _, one = deduplicate(sources(files, "a"), tmp_path / "one", scheme=SMALL)
    deduplicate(sources(files, "a"), tmp_path / "two", scheme=SMALL)
    deduplicate(sources(files, "b"), tmp_path / "two", scheme=SMALL)
    index = Index(tmp_path / "two", SMALL)
    index.forget("another batch")
    assert len(index) == 300
    index.forget(json.loads((tmp_path / "two" / "index.json").read_text())["batches"][-1]["name"])
    assert same(Index(tmp_path / "two", SMALL).clusters(0.75), one)
    deduplicate(sources(files, "b"), tmp_path / "two", scheme=SMALL)
    assert len(Index(tmp_path / "two", SMALL)) == 300


def test_an_index_of_an_older_rule_for_words_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(indices, "FORMAT", 1)
    deduplicate(sources(files, "a"), tmp_path, scheme=SMALL)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"format 1.*Another version.*another index"):
        Index(tmp_path, SMALL)
