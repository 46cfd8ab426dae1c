"""Walking a folder: every file once, nothing left out in silence, and what cannot be read is named."""

import contextlib
import json
import os
import random
import sys
from pathlib import Path

import pytest

from slmjax.errors import UserError
from slmjax.text.readers import read_documents
from slmjax.text.records import Source
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def listed(*paths: Path | str) -> tuple[list[str], str]:
    """(names of the files, what was said)."""
    said = []
    files = list_files(Source("web", tuple(str(path) for path in paths)), said.append)
    return [file.name for file in files], "\n".join(said)


def test_linked_files_and_folders_are_read_once_under_the_name_without_links(tmp_path):
    tree(tmp_path, "in/a.txt", "in/sub/b.txt", "out/c.txt", "out/d.txt")
    os.symlink("../out", tmp_path / "in" / "linked")
    os.symlink("../out", tmp_path / "in" / "again")
    os.symlink("sub", tmp_path / "in" / "0-sub")
    os.symlink("a.txt", tmp_path / "in" / "0-a.txt")
    for place in (tmp_path / "in", tmp_path / "in" / "**"):
        names, said = listed(place)
        assert [name.rpartition("/")[2] for name in names] == [
            "a.txt",
            "c.txt",
            "d.txt",
            "b.txt",
        ] and said == ""
        assert names[0] == "a.txt" and names[-1] == "sub/b.txt"
    assert (
        len(listed(tmp_path / "in", tmp_path / "out")[0]) == 4
    )  # also where two paths of a source meet


def test_a_loop_ends_and_a_link_around_its_own_folder_is_said_to_be_left_out(tmp_path):
    tree(tmp_path, "all/in/a.txt", "all/private/b.txt")
    os.symlink("..", tmp_path / "all" / "in" / "up")
    os.symlink(".", tmp_path / "all" / "in" / "self")
    for place in (tmp_path / "all" / "in", tmp_path / "all" / "in" / "**" / "*.txt"):
        names, said = listed(place)
        assert names == ["a.txt"]
        assert "link to a folder around it: self, up" in said


def test_what_lies_beside_the_text_is_named_with_the_reason_why_it_is_left_out(tmp_path):
    tree(tmp_path, "a.txt", "b.md", "c.csv", ".d.txt", ".git/e.txt", ".DS_Store")
    os.symlink("nowhere.txt", tmp_path / "f.txt")
    os.mkfifo(tmp_path / "g.txt")
    names, said = listed(tmp_path)
    assert names == ["a.txt"]
    for words in (
        "unsupported ending: b.md, c.csv",
        "hidden: .d.txt, .git",
        "a link that leads nowhere: f.txt",
        "a named pipe: g.txt",
    ):
        assert words in said
    assert ".DS_Store" not in said  # no text, wherever it lay
    names, said = listed(tmp_path / "*.txt")
    assert names == ["a.txt"] and "leads nowhere: f.txt" in said and "a named pipe: g.txt" in said


@pytest.mark.parametrize(
    ("name", "message"),
    [("pipe.txt", "is a named pipe"), ("link.txt", "is a link that leads nowhere")],
)
def test_a_path_that_is_no_file_is_refused_when_it_is_named(tmp_path, name, message):
    os.mkfifo(tmp_path / "pipe.txt")
    os.symlink("nowhere.txt", tmp_path / "link.txt")
    with pytest.raises(UserError, match=f"data.sources.web: .*{name} {message}; expected a file"):
        listed(tmp_path / name)


def test_patterns_match_what_the_glob_of_python_matches(tmp_path):
    import glob

    names = (
        "a.txt",
        "x/b.txt",
        "x/y/c.txt",
        "x/y/z/a.txt",
        "w/y/d.jsonl",
        "[1].txt",
        "x/[2]/e.txt",
    )
    tree(tmp_path, *names)
    patterns = (
        "*.txt",
        "**/*.txt",
        "*/y/*",
        "x/**/a.txt",
        "**/y/**/*.txt",
        "x/y/../*.txt",
        "?.txt",
        "[a-c].txt",
        "x/**",
    )
    for pattern in (*patterns, "**/[[]2]/*"):
        python = {
            path
            for path in glob.glob(str(tmp_path / pattern), recursive=True)
            if os.path.isfile(path)
        }
        expected = {os.path.realpath(path) for path in python}
        for folder in glob.glob(str(tmp_path / pattern), recursive=True):
            expected |= {
                os.path.realpath(path) for path in Path(folder).rglob("*") if path.is_file()
            }  # folders are searched
        files = list_files(Source("web", (str(tmp_path / pattern),)))
        assert {os.path.realpath(file.path) for file in files} == expected, pattern
    assert listed(tmp_path / "[1].txt")[0] == ["[1].txt"]  # a file that is there is no pattern


def workdir(folder: Path) -> None:
    tree(folder, "metrics.jsonl", "dropped.jsonl", "documents/web/0.jsonl")
    (folder / "config.json").write_text(
        json.dumps({"stage": "train", "data": {}, "model": {}, "train": {}})
    )


def test_what_slmjax_writes_below_a_source_is_no_text_of_it(tmp_path):
    tree(
        tmp_path,
        "a.txt",
        "runs/prepared/.identity/x",
        "runs/prepared/p/work~/p.jsonl",
        "runs/prepared/textbook/t.jsonl",
    )
    tree(tmp_path, "moved/web/0.jsonl", "notes/config.json", "notes/b.txt")
    (tmp_path / "moved" / "manifest.json").write_text(
        '{"format": 2, "fingerprint": "", "tokenizer": {}, "sources": {}}'
    )
    workdir(tmp_path / "runs" / "mine")
    for place in (tmp_path, tmp_path / "*", tmp_path / "**" / "*"):
        names, said = listed(place)
        assert names == ["a.txt", "notes/b.txt"]
        assert "written by slmjax: moved, runs/mine, runs/prepared" in said
    # What a person names is read: it is the way from curation to training.
    assert listed(tmp_path / "runs" / "mine" / "documents")[0] == ["web/0.jsonl"]
    assert listed(tmp_path / "runs" / "*" / "documents" / "web" / "*.jsonl")[0] == [
        "mine/documents/web/0.jsonl"
    ]
    # A work directory among the texts: its own files are left out.
    workdir(tmp_path / "notes")
    names, said = listed(tmp_path / "notes")
    assert (
        names == ["b.txt", "documents/web/0.jsonl"]
        and "written by slmjax: dropped.jsonl, metrics.jsonl" in said
    )
    assert listed(tmp_path / "notes" / "*.*")[0] == ["b.txt"]


@pytest.mark.parametrize("left", ["killed", "copied"])
def test_what_a_killed_stage_left_half_done_is_no_text(tmp_path, left):
    """Of curation, whose work folder has the sketches of each file, and of preparation."""
    tree(
        tmp_path,
        "run/work/web-00000.jsonl",
        "run/work/web-00000.sketches/keys",
        "run/work/documents/web/00000.jsonl",
    )
    tree(tmp_path, "p/work~/web.jsonl", "notes/a.txt", "run/documents/web/00000.jsonl")
    if left == "killed":
        (tmp_path / "run" / "config.json").write_text(
            json.dumps({"stage": "curate", "data": {}, "model": {}, "train": {}})
        )
    for place in (tmp_path / "run", tmp_path / "run" / "**" / "*.jsonl"):
        names, said = listed(place)
        assert names == ["documents/web/00000.jsonl"] and said.endswith("written by slmjax: work")
    assert "p/work~" in listed(tmp_path)[1] and "web.jsonl" not in " ".join(listed(tmp_path)[0])


def as_an_ordinary_user(function) -> str:
    """What `function` raises where this process may not read everything, as root may."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if is_root:
            os.seteuid(0)
    return "nothing"


@pytest.fixture
def open_folder():
    """A folder that other users may read."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are of another kind")
def test_a_folder_or_file_that_cannot_be_read_is_named_and_not_left_out(open_folder):
    tree(open_folder, "a.txt", "shut/b.txt", "alone/c.txt")
    (open_folder / "shut").chmod(0)
    for place in (open_folder, open_folder / "**" / "*.txt", open_folder / "*" / "*.txt"):
        words = as_an_ordinary_user(lambda place=place: listed(place))
        assert (
            words
            == f"UserError: data.sources.web: cannot read the folder {open_folder / 'shut'}: Permission denied."
        )
    words = as_an_ordinary_user(lambda: listed(open_folder / "shut" / "b.txt"))
    assert (
        words
        == f"UserError: data.sources.web: cannot read {open_folder / 'shut' / 'b.txt'}: Permission denied."
    )
    (open_folder / "alone" / "c.txt").chmod(0)
    source = Source("web", (str(open_folder / "alone"),))
    words = as_an_ordinary_user(lambda: list(read_documents(list_files(source)[0], source)))
    assert (
        words
        == f"UserError: data.sources.web: cannot read {open_folder / 'alone' / 'c.txt'}: Permission denied."
    )


def test_names_that_are_numbers_or_not_utf8_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree(Path("2020"), "a.txt")
    with contextlib.suppress(OSError):  # some systems refuse such a name
        (Path("2020") / os.fsdecode(b"\xff.txt")).write_text("more text")
    for value in ({"t": {"path": 2020}}, {"t": 2020}, "t=2020", "2020", ["2020"]):
        (source,) = parse_sources(value)
        files = list_files(source)
        assert files[0].name == "a.txt"
        for file in files:
            file.name.encode()  # can be printed and stored
            assert [document.bytes for document in read_documents(file, source)] == [
                len(Path(file.path).read_bytes())
            ]


def test_an_order_of_the_system_changes_nothing(tmp_path, monkeypatch):
    tree(tmp_path, *(f"{i % 5}/{i}.txt" for i in range(40)))
    os.symlink("1", tmp_path / "0" / "one")
    expected, real = listed(tmp_path), os.scandir

    @contextlib.contextmanager
    def shuffled(folder):
        with real(folder) as entries:
            yield random.sample(found := list(entries), len(found))

    monkeypatch.setattr(os, "scandir", shuffled)
    assert listed(tmp_path) == expected
