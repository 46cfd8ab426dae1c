"""A source of another format, read by a function of the user's own, without a change of the library."""

import csv
import gzip
import inspect
import io
import json
import sys

import pytest

from slmjax import config as configs
from slmjax.data import preparation_plan as preparing
from slmjax.data.prepare import prepare
from slmjax.errors import UserError
from tests.contracts import reader

CSV = "tests.contracts.reader:read_csv"
TEXTS = [f'"Number {n}", said the river,\nand went on to {n + 1}.' for n in range(200)]


def data(path, own=CSV, **fields):
    source = {"path": str(path), "field": "body", "reader": own}
    return configs.DataConfig(sources={"tales": source}, vocab_size=300, heldout=0.1, **fields)


@pytest.fixture
def table(tmp_path):
    """A compressed table of texts with several lines each, and two broken rows."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "body"])
    writer.writerows(enumerate(TEXTS))
    out.write("200\n201,a,b\n")
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(out.getvalue().encode()))
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_a_reader_of_the_users_own_gives_the_documents_that_json_lines_give(
    table, tmp_path, processes, monkeypatch
):
    lines = tmp_path / "table.jsonl"
    lines.write_text(
        "".join(json.dumps({"id": str(n), "body": text}) + "\n" for n, text in enumerate(TEXTS))
    )
    plain = configs.DataConfig(
        sources={"tales": {"path": str(lines), "field": "body"}}, vocab_size=300, heldout=0.1
    )
    expected = prepare(plain, seed=0, cache=tmp_path / "plain")
    monkeypatch.setattr(preparing, "IN_PROCESS_BYTES", 0)
    found = prepare(
        data(table, max_bad_share=0.02), seed=0, cache=tmp_path / "own", processes=processes
    )
    for kind in ("train", "heldout"):
        ours, theirs = getattr(found, kind)["tales"], getattr(expected, kind)["tales"]
        assert [tokens.tolist() for tokens in ours] == [tokens.tolist() for tokens in theirs]
    assert found.manifest["sources"]["tales"]["faults"] == {"malformed CSV": 2}


def test_too_many_faults_of_an_own_reader_are_refused_with_their_lines(table, tmp_path):
    with pytest.raises(
        UserError, match=r"2 of 202 records.*table\.csv\.gz line 402: malformed CSV"
    ):
        prepare(data(table), seed=0, cache=tmp_path)


@pytest.mark.parametrize(
    "name, told",
    [
        (
            "failing",
            r"tests\.contracts\.reader:failing' failed: '.*reader\.py', line \d+: KeyError: body",
        ),
        ("texts", r"it gave 'a text'; expected a Record or a Fault"),
        (
            "missing",
            r"data\.sources\.tales\.reader 'tests\.contracts\.reader:missing': module .* has no attribute 'missing'",
        ),
    ],
)
def test_a_reader_that_fails_is_named_with_its_line(table, tmp_path, name, told):
    with pytest.raises(UserError, match=told):
        prepare(data(table, f"tests.contracts.reader:{name}"), seed=0, cache=tmp_path)


def test_prepared_text_is_reused_until_the_readers_code_changes(table, tmp_path, monkeypatch):
    code = inspect.getsource(reader)
    (tmp_path / "changing.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    one = prepare(data(table, "changing:read_csv", max_bad_share=0.02), seed=0, cache=tmp_path)
    assert (
        prepare(data(table, "changing:read_csv", max_bad_share=0.02), seed=0, cache=tmp_path).folder
        == one.folder
    )
    (tmp_path / "changing.py").write_text(
        code.replace("yield Record(row", "yield row['id'] != '7' and Record(row")
    )
    del sys.modules["changing"]
    with pytest.raises(UserError, match="it gave False; expected a Record"):
        prepare(data(table, "changing:read_csv", max_bad_share=0.02), seed=0, cache=tmp_path)
