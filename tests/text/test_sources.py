"""Sources: what a user may type, which files are found, and that every record comes out once, as it is or as a counted fault."""

import gzip
import json
import lzma
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from slmjax.errors import UserError
from slmjax.text import remote
from slmjax.text.readers import read_documents
from slmjax.text.records import DAMAGED, Document, Fault, Source, SourceFile
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources

KNOWN = sys.modules["fsspec.registry"]._registry  # file systems that fsspec has imported
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip)
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: (
        zstandard.compress(data[:10]) + zstandard.compress(data[10:])
    ),  # two frames, as parallel compressors write
}


def source(*paths: Path | str, **options) -> Source:
    return Source("web", tuple(str(path) for path in paths), **options)


def read(path: Path, group_by: str = "", **options) -> list[Document | Fault]:
    one = source(path, **options)
    return list(read_documents(list_files(one)[0], one, group_by))


def lines(*records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_text_mapping_and_config_mean_the_same_sources():
    expected = (Source("books", ("a/b.txt",), 0.7), Source("web", ("data/*.jsonl.xz",), 0.3))
    entries = {
        "books": {"path": "a/b.txt", "weight": 0.7},
        "web": {"path": ["data/*.jsonl.xz"], "weight": 0.3},
    }
    assert parse_sources("books:0.7=a/b.txt, web:0.3=data/*.jsonl.xz") == expected
    assert (
        parse_sources(entries)
        == parse_sources(ConfigDict(entries))
        == parse_sources(expected)
        == expected
    )
    assert parse_sources("") == parse_sources({}) == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data/books", "books"),
        ("x/web/*.jsonl.xz", "web"),
        ("a.b/my text.txt", "my-text"),
        ("hf://datasets/o/n@main/d/train-*.parquet", "train"),
    ],
)
def test_a_bare_path_is_named_after_its_last_piece(text, name):
    assert [s.name for s in parse_sources(text)] == [name]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"web": {"path": "a", "wieght": 1}}, "wieght.*weight"),
        ({"web": {"path": "a", "weight": -1}}, "a number of 0 or more"),
        ({"web": {"path": "a", "weight": "much"}}, "a number of 0 or more"),
        (
            {"web": {"path": "a", "max_epochs": 0}},
            r"web.max_epochs is 0; expected a positive number",
        ),
        ({"web": {}}, "path is missing"),
        ("web=a,web=b", "two sources"),
        ({"a/b": "c"}, "a/b"),
    ],
)
def test_a_mistake_in_a_source_is_named(value, message):
    with pytest.raises(UserError, match=message):
        parse_sources(value)


def test_a_folder_gives_all_supported_files_below_it_and_a_pattern_only_its_own(tmp_path):
    for name in (
        "a.jsonl",
        "sub/b.txt.gz",
        "sub/c.parquet",
        "notes.md",
        ".hidden.txt",
        ".git/d.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in list_files(source(tmp_path))] == [
        "a.jsonl",
        "sub/b.txt.gz",
        "sub/c.parquet",
    ]
    assert [file.name for file in list_files(source(tmp_path / "**" / "*.gz"))] == ["sub/b.txt.gz"]
    assert (
        len(list_files(source(tmp_path, tmp_path / "a.jsonl"))) == 3
    )  # a file that two paths name is one file


def test_paths_that_give_no_text_are_named(tmp_path):
    (tmp_path / "story.txt").write_text("")
    (tmp_path / "notes.md").write_text("x")
    for path, message in (
        ("stroy.txt", "matches no file.*story.txt"),
        ("*.parquet", "no file"),
        ("story.txt", "empty"),
        ("notes.md", "unsupported.*jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            list_files(source(tmp_path / path))


@given(texts=st.lists(TEXTS | st.just("a\u2028b\x85c\rd\ne"), max_size=5))
@pytest.mark.parametrize("ending", COMPRESS)
def test_every_text_comes_back_from_jsonl_in_order(ending, texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / f"a.jsonl{ending}"
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    path.write_bytes(COMPRESS[ending](data or b"\n"))
    found = read(path)
    assert [(d.text, d.line, d.bytes) for d in found] == [
        (t, i + 1, len(t.encode())) for i, t in enumerate(texts)
    ]


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_text_file_is_one_document(tmp_path, ending):
    text = "One.\r\n\r\nTwo\u2028three \u00e9.\n"
    (tmp_path / f"a.txt{ending}").write_bytes(COMPRESS[ending](b"\xef\xbb\xbf" + text.encode()))
    (document,) = read(tmp_path / f"a.txt{ending}")
    assert (document.text, document.bytes) == (text, len(text.encode()))


def test_parquet_rows_are_documents_and_null_or_broken_ones_faults(tmp_path):
    broken = pa.array([b"good", None, b"\xff", b"  "], pa.binary()).view(pa.string())
    table = pa.table({"body": broken, "book": ["a", "a", "b", "b"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    document, *faults = read(tmp_path / "a.parquet", "book", field="body")
    assert (document.text, document.group, document.line) == ("good", "a", 1)
    assert [(f.line, f.reason) for f in faults] == [
        (2, "no text"),
        (3, "invalid UTF-8"),
        (4, "empty document"),
    ]
    with pytest.raises(UserError, match=r"no column 'bodi'.*'body'"):
        read(tmp_path / "a.parquet", field="bodi")


def test_each_kind_of_bad_line_is_a_fault_with_its_line_and_reason(tmp_path):
    bad = [
        b"{oops",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b'{"text": " \\n"}',
        b"[1]",
        b'{"text": "\\ud800"}',
        b"",
    ]
    (tmp_path / "a.jsonl").write_bytes(
        lines({"text": "one"}) + b"\n".join([*bad, b""]) + b'{"text": "last"}'
    )
    found = read(tmp_path / "a.jsonl")
    assert [(d.text, d.line) for d in found if isinstance(d, Document)] == [
        ("one", 1),
        ("last", 10),
    ]
    reasons = [
        "malformed JSON",
        "no text",
        "no text",
        "invalid UTF-8",
        "empty document",
        "malformed JSON",
        "invalid UTF-8",
    ]
    assert [(f.line, f.reason) for f in found if isinstance(f, Fault)] == [
        (2 + i, reason) for i, reason in enumerate(reasons)
    ]


def test_a_score_is_read_with_its_document_and_one_that_is_no_number_is_a_fault(tmp_path):
    scores = [1, -2.5, "3", True, None, float("nan"), float("inf"), 10**400]
    (tmp_path / "a.jsonl").write_bytes(
        lines(*({"text": "t", "quality": score} for score in scores), {"text": "t", "qualiti": 1})
    )
    found = read(tmp_path / "a.jsonl", score="-quality")
    assert [document.score for document in found[:2]] == [1.0, -2.5]
    assert [(fault.line, fault.reason) for fault in found[2:]] == [
        (line, "no score") for line in range(3, 10)
    ]
    assert (
        "str, not a finite number" in found[2].detail
        and "Did you mean 'qualiti'" in found[-1].detail
    )
    columns = {"text": ["a", "b", None], "quality": [0.5, None, 1.0], "id": ["x", "y", "z"]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    document, *faults = read(tmp_path / "a.parquet", "id", score="quality")
    assert (document.score, document.group) == (0.5, "x") and [
        fault.reason for fault in faults
    ] == ["no score", "no text"]
    with pytest.raises(UserError, match=r"no column 'qualty'.*Did you mean 'quality'"):
        read(tmp_path / "a.parquet", score="qualty")
    (tmp_path / "a.txt").write_text("text")
    assert read(tmp_path / "a.txt", score="quality")[0].reason == "no score"


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_cut_or_damaged_file_is_never_taken_for_a_short_one(tmp_path, ending):
    data = COMPRESS[ending](lines(*({"text": f"number {i} {hash(str(i))}"} for i in range(2000))))
    for name, content in (
        ("cut", data[: len(data) // 2]),
        ("noise", data[:40] + b"noise" * 9 + data[85:]),
    ):
        (tmp_path / f"{name}.jsonl{ending}").write_bytes(content)
        assert read(tmp_path / f"{name}.jsonl{ending}")[-1].reason == DAMAGED
    (tmp_path / f"empty.jsonl{ending}").write_bytes(b"")  # not even the header of no text
    empty = SourceFile(str(tmp_path / f"empty.jsonl{ending}"), "empty", 0, "")
    assert [item.reason for item in read_documents(empty, Source("a", ()))] == [DAMAGED]
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    assert read(tmp_path / "x.parquet")[-1].reason == DAMAGED


def test_groups_come_from_a_field_or_a_regular_expression_on_the_id(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        lines({"text": "x", "id": "novel/ch/1", "year": 1900}, {"text": "y", "id": "alone"})
    )
    assert [d.group for d in read(tmp_path / "a.jsonl", "^(.*)/")] == ["novel/ch", "alone"]
    assert [d.matched for d in read(tmp_path / "a.jsonl", "re:novel")] == [True, False]
    by_year = read(tmp_path / "a.jsonl", "year")
    assert by_year[0].group == "1900"
    assert by_year[1].reason == "no group" and "year" in by_year[1].detail
    with pytest.raises(UserError, match="group_by"):
        read(tmp_path / "a.jsonl", "(")


class FakeHub(MemoryFileSystem):
    """A store in memory under hf://, whose paths carry the revision as those of the Hub do."""

    protocol = ("hf",)
    store, pseudo_dirs = {}, [""]


@pytest.fixture
def hub(monkeypatch):
    fsspec.register_implementation("hf", FakeHub, clobber=True)
    commits = {"main": "a" * 40, "v2": "b" * 40}
    monkeypatch.setattr(
        remote, "resolve_commit", lambda repository, revision, where: commits[revision or "main"]
    )
    system = fsspec.filesystem("hf")
    for commit, text in (("a" * 40, "first"), ("b" * 40, "second")):
        system.pipe(f"datasets/owner/name@{commit}/data/train-0.jsonl", lines({"text": text}))
        system.pipe(f"datasets/owner/name@{commit}/data/test-0.jsonl", lines({"text": "no"}))
    yield system
    KNOWN.pop("hf")


@pytest.mark.parametrize(
    ("path", "revision", "text"),
    [
        ("hf://datasets/owner/name/data/train-*.jsonl", "", "first"),
        ("hf://owner/name/data/train-*.jsonl", "v2", "second"),
        ("hf://datasets/owner/name@v2/data/train-0.jsonl", "", "second"),
        (f"hf://datasets/owner/name@{'b' * 40}/data/train-*.jsonl", "", "second"),
    ],
)
def test_hub_files_are_read_at_the_commit_that_the_revision_stands_for(hub, path, revision, text):
    one = source(path, revision=revision)
    (file,) = list_files(one)
    assert ("@" + ("a" if text == "first" else "b") * 40) in file.path
    assert [d.text for d in read_documents(file, one)] == [text]
    assert (
        file.version
        != list_files(source(path.replace("train", "test"), revision=revision))[0].version
    )


def test_hub_mistakes_are_named(hub):
    for path, revision, message in (
        ("hf://owner/name@v2/*.jsonl", "main", "'v2'.*'main'"),
        ("hf://owner", "", "hf://datasets/OWNER/NAME"),
        ("hf://owner/name/nothing-*.jsonl", "", "matches no file"),
        ("nosuch://x/y.jsonl", "", "gs:// or hf://"),
    ):
        with pytest.raises(UserError, match=message):
            list_files(source(path, revision=revision))


@pytest.mark.parametrize(
    ("path", "module", "extra"),
    [("hf://o/n/*.txt", "huggingface_hub", "hub"), ("gs://b/*.txt", "gcsfs", "gcs")],
)
def test_a_missing_extra_is_named_with_its_command(monkeypatch, path, module, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for protocol in ("hf", "gs"):
        monkeypatch.delitem(KNOWN, protocol, raising=False)
    with pytest.raises(UserError, match=rf'pip install "slmjax\[{extra}\]"'):
        list_files(source(path))


@pytest.mark.parametrize(
    ("record", "field", "said"),
    [
        (
            {"id": "7", "content": "a long text of some words"},
            "text",
            "missing (fields: id, content). Most text is in 'content'",
        ),
        (
            {"id": "7", "txt": "some", "more": "a longer one"},
            "text",
            "missing (fields: id, txt, more). Did you mean 'txt'?",
        ),
        (
            {"messages": [{"role": "user"}]},
            "text",
            "missing (fields: messages). No field holds a string; lists and objects",
        ),
        (
            {"text": {"content": "some"}},
            "text",
            "dict with the fields content, not a string. No field holds a string",
        ),
        (
            {"text": {"content": "some"}},
            "text.content",
            "missing (fields: text). No field holds a string",
        ),
        (
            {"text": None, "body": "some words"},
            "text",
            "NoneType, not a string. Most text is in 'body'",
        ),
    ],
)
def test_a_record_without_text_says_where_its_text_may_be(tmp_path, record, field, said):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (fault,) = read(tmp_path / "a.jsonl", field=field)
    assert fault.detail.startswith(f"'{field}' is {said}")


def test_a_parquet_file_without_the_column_names_the_one_with_the_most_text(tmp_path):
    table = pa.table(
        {"id": ["1", "2"], "content": ["a long text " * 9, "another " * 9], "size": [3, 4]}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        UserError,
        match=r"no column 'text' \(columns: id, content, size\). Most text is in 'content'\.$",
    ):
        read(tmp_path / "a.parquet")
    twice = pa.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(UserError, match="has several columns named 'text'"):
        read(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x" * 200: "a"}, "has 200 characters; give it a shorter name"),
        (
            {"a": {"path": "a", "field": ""}},
            "data.sources.a.field is empty; expected the name of a field",
        ),
        (
            {"a": {"path": "a", "score": "-"}},
            "data.sources.a.score is '-'; expected the name of a field",
        ),
    ],
)
def test_a_name_that_cannot_be_a_file_and_an_empty_field_are_refused(value, message):
    with pytest.raises(UserError, match=message):
        parse_sources(value)


def test_an_address_that_cannot_be_read_says_what_to_do(monkeypatch):
    def missing(protocol):
        raise ImportError("it requires another package")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(
        UserError, match=r"https:// cannot be read here .*; download the file first\.$"
    ):
        list_files(source("https://example.com/a.jsonl"))
    with pytest.raises(
        UserError, match=r"s3:// cannot be read here .*; use a local path, gs:// or hf://\.$"
    ):
        list_files(source("s3://bucket/a.jsonl"))


def test_a_path_of_a_user_that_is_not_there_matches_no_file():
    (one,) = parse_sources("~no-such-user/texts")
    with pytest.raises(UserError, match="'~no-such-user/texts' matches no file"):
        list_files(one)


@pytest.mark.parametrize("name", ["preferences", "answers", "total"])
def test_the_name_of_a_score_over_all_sources_is_refused_next_to_conversations(name):
    entry = {"path": "a.jsonl"}
    assert parse_sources({name: entry, "b": entry})
    with pytest.raises(UserError, match=f"'{name}' is the name of scores over all sources; give"):
        parse_sources({name: entry, "b": {**entry, "kind": "pairs", "weight": 0}})


def test_a_held_out_share_of_zero_may_be_an_integer():
    (source,) = parse_sources({"c": {"path": "a.jsonl", "heldout": 0}})
    assert source.heldout == () and source.heldout_share == 0
    (source,) = parse_sources({"c": {"path": "a.jsonl", "heldout": 2024}})
    assert source.heldout == ("2024",) and source.heldout_share is None
