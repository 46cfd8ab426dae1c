"""Many small files are few units and shards, and give what each file gives by itself."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from slmjax.data import build, jobs
from slmjax.data.prepare import prepare
from slmjax.data.shards import ShardSet, ShardWriter
from slmjax.errors import UserError
from slmjax.text import source_files as module
from slmjax.text.records import Source, SourceFile

SETTINGS = {"vocab_size": 300, "group_by": "", "heldout": 0.1, "max_bad_share": 0.05}


def run(sources, cache, tokenizer="", say=lambda sentence: None, **options):
    data = SimpleNamespace(sources=sources, tokenizer=tokenizer, **SETTINGS)
    return prepare(data, seed=0, cache=cache, processes=1, say=say, **options)


def corpus(folder) -> dict:
    """Three sources: many small files with some that cannot be used, many held-out files, and few files."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(500)]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(5, 60)))

    for name, files in (("many/a", 25), ("many/b", 20), ("own", 9), ("held", 25), ("few", 3)):
        (folder / name).mkdir(parents=True)
        for i in range(files):
            (folder / name / f"{i:03d}.txt").write_text(text())
    (folder / "many/a/005.txt").write_bytes(b"not a \xff text")
    (folder / "many/b/007.txt").write_text("")
    records = [json.dumps({"text": text()}) for _ in range(20)]
    (folder / "many/a/017.jsonl").write_text("\n".join([*records[:9], "no JSON", *records[9:]]))
    (folder / "many/b/019.txt").write_text(text() * 200)
    parts = [str(folder / "many" / part) for part in "ab"]  # whose files have the same names
    own = {"path": str(folder / "own"), "heldout": str(folder / "held")}
    return {"many": {"path": parts}, "own": own, "few": str(folder / "few")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(folder, sources, what comes out where every file is a unit)."""
    folder = tmp_path_factory.mktemp("alone")
    sources = corpus(folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW", 10**9)
        return folder, sources, run(sources, folder / "cache")


@pytest.fixture
def small(monkeypatch):
    """Bounds that these few files reach; the large file at the end of "many" is alone."""
    for name, value in (("FEW", 20), ("TOGETHER_FILES", 30), ("TOGETHER_BYTES", 30_000)):
        monkeypatch.setattr(module, name, value)


def everything(prepared) -> dict:
    """All that a run reads and all that is said of it, except which shards hold it."""
    out = {
        "folder": prepared.folder.name,
        "fingerprint": prepared.fingerprint,
        "tokenizer": prepared.tokenizer.sha256,
    }
    for name, of in prepared.manifest["sources"].items():
        out[name] = {
            field: value for field, value in of.items() if field not in ("shards", "heldout_shards")
        }
        for side, shards in (("train", prepared.train[name]), ("heldout", prepared.heldout[name])):
            names = [shards.name(i) for i in range(len(shards))]
            out[name, side] = (
                names,
                [ids.tolist() for ids in shards],
                shards.keys.tolist(),
                shards.bytes.tolist(),
            )
    return out | {
        "manifest": prepared.manifest["fingerprint"],
        "warnings": prepared.manifest["warnings"],
    }


def shards_of(prepared, name: str) -> list[str]:
    entry = prepared.manifest["sources"][name]
    return [shard["path"] for shard in entry["shards"] + entry["heldout_shards"]]


@pytest.mark.parametrize("given", [False, True])
def test_many_small_files_are_few_shards_with_the_documents_tokens_and_held_out_choice_of_each_alone(
    alone, small, tmp_path, given
):
    folder, sources, expected = alone
    tokenizer = str(expected.folder / "tokenizer.json") if given else ""
    if given:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "FEW", 10**9)
            expected = run(sources, folder / "cache", tokenizer)
    together = run(sources, tmp_path, tokenizer)
    assert everything(together) == everything(expected)
    assert together.manifest["sources"]["many"]["faults"] == {
        "invalid UTF-8": 1,
        "empty document": 1,
        "malformed JSON": 1,
    }
    assert len(shards_of(expected, "many")) > 40 and 3 <= len(shards_of(together, "many")) <= 6
    assert len(shards_of(expected, "own")) == 9 + 25 and len(shards_of(together, "own")) == 9 + 1
    assert together.manifest["sources"]["few"] == expected.manifest["sources"]["few"]
    assert len(list(tmp_path.glob(".identity/*"))) == 3 + 9 + 1 + 3
    again = run(
        sources, folder / "cache", tokenizer
    )  # files that were prepared one by one are not prepared again
    assert shards_of(again, "many") == shards_of(expected, "many")


def test_units_hold_files_in_their_order_within_bounds_of_number_and_text_and_few_or_large_files_are_alone():
    def files(*sizes):
        return [
            SourceFile(f"/{i:04d}.txt", f"{i:04d}.txt", size, "") for i, size in enumerate(sizes)
        ]

    def parts(*sizes):
        units = jobs.units_of(Source("s", ("/",)), files(*sizes), "train")
        assert [file for unit in units for file in unit.files] == files(*sizes)
        assert len({unit.name for unit in units}) == len(units)
        assert [unit.index for unit in units] == np.cumsum(
            [0, *(len(unit.files) for unit in units)]
        )[:-1].tolist()
        return [len(unit.files) for unit in units]

    assert parts(*[10] * 100) == [1] * 100
    assert parts(*[10] * 2001) == [1000, 1000, 1]
    assert parts(*[2_000_000] * 101) == [2] * 50 + [1]
    assert parts(*[2_100_000] * 101) == [1] * 101
    assert parts(5, 5_000_000, *[5] * 150) == [1, 1, 150]
    (first, *_, last) = jobs.units_of(Source("s", ("/",)), files(9_000_000, *[5] * 150), "train")
    assert first.name == "s-train-00000" and last.name == "s-train-00001-00150"


def test_a_file_too_long_for_a_shard_is_cut_where_it_is_cut_alone(tmp_path):
    draw = np.random.default_rng(0)
    lengths = [draw.integers(0, 90, n) for n in (1, 9, 2, 1, 30, 3)]
    options = {"vocab_size": 300, "eot": 0, "max_tokens": 200}
    shards = []
    for number, of_file in enumerate(lengths):
        with ShardWriter(tmp_path, f"s/{number}.arrayrecord", f"{number}.txt", **options) as writer:
            for line, length in enumerate(of_file.tolist(), 1):
                writer.add([number] * length, length, length, line)
        shards += writer.shards
    with ShardWriter(tmp_path, "s/all.arrayrecord", "0.txt", **options) as writer:
        for number, of_file in enumerate(lengths):
            writer.next_file(f"{number}.txt")
            for line, length in enumerate(of_file.tolist(), 1):
                writer.add([number] * length, length, length, line)
    sets = [
        ShardSet(each, [str(tmp_path)] * len(each), vocab_size=300)
        for each in (shards, writer.shards)
    ]
    alone, together = (
        [(each.name(i), ids.tolist()) for i, ids in enumerate(each)] for each in sets
    )
    assert (
        len(shards) > len(writer.shards) > 3
        and alone == together
        and len({each.fingerprint for each in sets}) == 1
    )
    for shard in (*shards, *writer.shards):
        assert not shard.fault(tmp_path)
        place = tmp_path / shard.path.replace(".arrayrecord", ".documents.npy")
        content = place.read_bytes()
        place.write_bytes(content[:128] + b"\1" + content[129:])  # where the first document begins
        assert shard.fault(tmp_path) == str(place)


def test_a_lost_part_or_shard_of_many_files_is_made_again_and_hosts_share_them(
    alone, small, tmp_path, monkeypatch
):
    _, sources, expected = alone
    original = build.finish_folder
    monkeypatch.setattr(build, "finish_folder", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(sources, tmp_path / "one")
    monkeypatch.setattr(build, "finish_folder", original)
    (part,) = (tmp_path / "one").rglob("many-train-00000-00029.scan.json")
    part.write_bytes(part.read_bytes().replace(b'"documents": 1', b'"documents": 2', 1))
    said = []
    made = run(sources, tmp_path / "one", say=said.append)
    assert (
        said == [f"{part} is damaged; preparing again"] and made.fingerprint == expected.fingerprint
    )
    table = made.folder / "many/train-00000.documents.npy"
    content = bytearray(table.read_bytes())
    content[-30] ^= 1
    table.write_bytes(content)
    assert run(sources, tmp_path / "one", say=said.append).fingerprint == expected.fingerprint
    assert said[1:] == [f"{table} is missing or damaged; preparing again"]
    with ThreadPoolExecutor(2) as pool:
        hosts = [
            pool.submit(
                run, sources, tmp_path / "two", process_index=i, process_count=2, timeout=60
            )
            for i in range(2)
        ]
        assert [everything(host.result()) == everything(expected) for host in hosts] == [True, True]


def test_what_the_manifest_says_of_a_file_in_a_shared_shard_is_checked(alone, small, tmp_path):
    _, sources, expected = alone
    made = run(sources, tmp_path)
    manifest = json.loads((made.folder / "manifest.json").read_text())
    # As of an older version: with its seal, any change at all would be seen.
    del manifest["seal"]
    part = manifest["sources"]["many"]["shards"][0]["parts"][3]
    for place, value in ((1, 2), (2, "0" * 64), (1, "one"), (0, None)):
        kept, part[place] = part[place], value
        (made.folder / "manifest.json").write_text(json.dumps(manifest))
        part[place], said = kept, []
        assert everything(run(sources, tmp_path, say=said.append)) == everything(expected)
        assert len(said) == 1 and "damaged; preparing again" in said[0]


def test_a_held_out_file_among_many_that_training_has_too_is_named(small, tmp_path):
    sources = corpus(tmp_path)
    (tmp_path / "held/021.txt").write_text((tmp_path / "own/004.txt").read_text())
    with pytest.raises(UserError, match=r"every document of 021\.txt occurs in training too \(1\)"):
        run({"own": sources["own"]}, tmp_path / "cache")
