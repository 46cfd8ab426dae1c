"""The stage curate: what is dropped and why, the same with one process and two, after a kill, and against an index of an earlier batch."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard

from slmjax import config as configs
from slmjax import launch
from slmjax.curate import stage

QUESTION = (
    "Mira packs seventeen wooden boxes with nine painted marbles each, gives four boxes away and asks how many marbles are left over."
)


def prose(rng, sentences=8):
    """Sentences of common words: long enough, and unlike any other."""
    filler = "the river was wide and the people of that town would be glad to have it with them".split()  # noqa: SIM905
    return " ".join(
        " ".join([f"Word{rng.integers(10**9)}", *rng.permutation(filler)[:12], f"name{rng.integers(10**9)}."]) for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two sources: good prose, near and exact copies, a short one, one that holds an evaluation item, a bad line."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    good = [prose(rng) for _ in range(12)]
    web = [*good, good[0], good[1].replace("wide", "broad", 1), "Too short.", f"{prose(rng)} {QUESTION} {prose(rng)}"]
    books = [good[2], *(prose(rng) for _ in range(5))]
    for name, texts in (("web", web), ("books", books)):
        lines = [json.dumps({"text": text, "id": f"{name}-{i}", "licence": "CC0"}) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    (folder / "eval.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "117"}) + "\n")
    return folder


def command(raw, workdir, *more):
    return ["--config=configs/curate.py", f"--workdir={workdir}", f"--config.data.sources=books={raw}/books.jsonl,web={raw}/web.jsonl",
            "--config.curate.rules.others=gopher_quality", "--config.curate.processes=1",
            f"--config.curate.evals={{'test': {{'path': '{raw}/eval.jsonl', 'fields': ('question',)}}}}", *more]  # fmt: skip


def documents(workdir):
    found = {}
    for file in sorted(Path(workdir, "documents").rglob("*.zst")):
        with zstandard.open(file, "rt", encoding="utf8") as lines:
            found[file.parent.name] = [json.loads(line) for line in lines]
    return found


def digests(workdir):
    """Of every file that a run leaves but for its config and its command."""
    files = [file for file in sorted(Path(workdir).rglob("*")) if file.is_file() and file.name not in ("config.json", ".lock")]
    text = {file.relative_to(workdir).as_posix(): file.read_bytes() for file in files}
    text["report.json"] = json.dumps(json.loads(text["report.json"]) | {"command": ""}).encode()
    text["report.html"] = text["report.html"].partition(b"<h2>Command")[0]
    return {name: hashlib.sha256(content).hexdigest() for name, content in text.items()}


def test_what_is_dropped_is_told_with_its_reason_and_what_is_left_knows_where_it_came_from(raw, tmp_path, capsys):
    assert launch.main(command(raw, tmp_path / "run")) == 0
    left = documents(tmp_path / "run")
    assert [record["id"] for record in left["books"]] == [f"books-{i}" for i in range(6)]
    assert [record["id"] for record in left["web"]] == [f"web-{i}" for i in (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    assert left["web"][2]["from"] == "web/web.jsonl line 4" and left["web"][2]["licence"] == "CC0"
    dropped = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"].partition(":")[0]) for entry in dropped] == [(15, "gopher_quality"), (16, "contaminated")]
    pairs = [json.loads(line) for line in (tmp_path / "run" / "duplicates.jsonl").read_text().splitlines()]
    told = [(of["line"], of["kept_file"], of["kept_line"], of["found"] == "same text") for of in pairs]
    assert told == [(3, "books/books.jsonl", 1, True), (13, "web/web.jsonl", 1, True), (14, "web/web.jsonl", 2, False)]
    report = json.loads((tmp_path / "run" / "report.json").read_text())["sources"]["web"]
    assert report["faults"] == {"malformed JSON": 1} and report["documents"]["read"] == 16 and report["left"]["documents"] == 11
    assert json.loads((tmp_path / "run" / "report.json").read_text())["evals"] == {"test": {"items": 1, "undecided": 0}}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Too short." in page and "contaminated: test" in page and "<svg" in page
    printed = capsys.readouterr().out
    assert "--config.data.sources=books=" in printed and "contaminated" in printed
    assert not (tmp_path / "run" / "work").exists()


def test_two_processes_leave_the_same_bytes_as_one(raw, tmp_path):
    assert launch.main(command(raw, tmp_path / "one" / "run")) == 0
    assert launch.main(command(raw, tmp_path / "two" / "run", "--config.curate.processes=2")) == 0
    assert digests(tmp_path / "one" / "run") == digests(tmp_path / "two" / "run")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_leaves_the_same_bytes(raw, tmp_path):
    assert launch.main(command(raw, tmp_path / "one" / "run")) == 0
    words = [sys.executable, "-m", "slmjax.launch", *command(raw, tmp_path / "killed" / "run")]
    for wait in (0.5, 1.0, 1.5, 2.0, 2.5):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert launch.main(command(raw, tmp_path / "killed" / "run")) == 0
    assert digests(tmp_path / "one" / "run") == digests(tmp_path / "killed" / "run")


def test_a_second_batch_leaves_out_what_the_index_has_seen(raw, tmp_path):
    first = [f"--config.data.sources=books={raw}/books.jsonl", f"--config.curate.index={tmp_path}/index"]
    second = [f"--config.data.sources=web={raw}/web.jsonl", f"--config.curate.index={tmp_path}/index"]
    assert launch.main(command(raw, tmp_path / "books", *first)) == 0
    assert launch.main(command(raw, tmp_path / "web", *second)) == 0
    assert launch.main(command(raw, tmp_path / "both")) == 0
    both = documents(tmp_path / "both")
    assert documents(tmp_path / "books") == {"books": both["books"]} and documents(tmp_path / "web") == {"web": both["web"]}
    told = (tmp_path / "both" / "duplicates.jsonl").read_text()
    assert (tmp_path / "web" / "duplicates.jsonl").read_text() == told


def test_a_source_that_loses_too_much_raises_an_alarm_and_writes_nothing(raw, tmp_path, capsys):
    assert launch.main(command(raw, tmp_path / "run", "--config.curate.max_removed=0.1")) == 2
    found = capsys.readouterr()
    assert "ALARM: source 'web' loses 21.4%" in found.out and "no documents were written" in found.err
    assert not (tmp_path / "run" / "documents").exists() and (tmp_path / "run" / "duplicates.jsonl").exists()
    assert "loses 21.4%" in (tmp_path / "run" / "report.html").read_text()
    assert launch.main(command(raw, tmp_path / "run", "--config.curate.max_removed=0.5")) == 0
    assert len(documents(tmp_path / "run")["web"]) == 11


def test_what_a_recipe_leaves_out_is_as_in_the_stages_own_recipe_and_is_recorded(raw, tmp_path):
    config = configs.base()
    assert stage.settings(config) == stage.settings(configs.load("configs/curate.py"))
    config.data.sources.web, config.curate.rules = {"path": f"{raw}/web.jsonl"}, {"web": "gopher_quality"}
    stage.run(config, str(tmp_path))
    recorded = configs.load(str(tmp_path / "config.json")).curate
    assert recorded.rules.to_dict() == {"web": ["gopher_quality"]} and set(recorded) == set(stage.SETTINGS)


@pytest.mark.parametrize("word, told", [
    ("--config.curate.treshold=0.7", "Did you mean 'threshold'"), ("--config.curate.threshold=high", "threshold is 'high'"),
    ("--config.curate.threshold=1.5", "at most 1"), ("--config.curate.rules.others=gofer_quality", "no quality rule 'gofer_quality'"),
    ("--config.curate.rules.boks=c4", "names 'boks'"), ("--config.data.sources={}", "data.sources is empty"),
    ("--workdir=gs://bucket/run", "folder of this machine"), ("--init_from=runs/tiny", "--init_from"),
    ("--config.curate.index=configs", "no index"),
])  # fmt: skip
def test_mistakes_are_named(raw, tmp_path, word, told, capsys):
    assert launch.main(command(raw, tmp_path / "run", word)) == 2
    assert told in capsys.readouterr().err
