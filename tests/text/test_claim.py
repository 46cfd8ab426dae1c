"""A work directory has one writer: while it lives it is named, and nothing of it outlives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from slmjax import launch
from slmjax.errors import UserError
from slmjax.text import claims
from slmjax.text import files as work
from slmjax.text.claims import claimed

HOLD = """
import sys, time
from slmjax.text.claims import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / "run"."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_folder_that_is_deleted_is_no_longer_held(tmp_path):
    with claimed(str(tmp_path / "run")) as claim:
        assert claim.mine()
        shutil.rmtree(tmp_path / "run")
        assert not claim.mine()
    assert not (tmp_path / "run").exists()


def test_a_second_start_is_refused_by_name_and_a_kill_frees_the_folder(tmp_path, holder, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from slmjax import config\nget_config = config.base\n")
    words = [f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    for stage in ("train", "curate", "synthesize", "recall"):
        assert launch.main([*words, f"--config.stage={stage}"]) == 2
        assert (
            f"process {holder.pid} on " in (err := capsys.readouterr().err) and err.count("\n") == 1
        )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [claims.LOCK]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claimed(str(tmp_path / "run")) as claim:
        assert claim.mine()


HALF = """
import os, signal, sys
from pathlib import Path
from slmjax.text import files as work
work.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
work.write_atomic(Path(sys.argv[1]) / "name", "half")
"""


def test_what_a_killed_process_left_half_written_goes_with_the_next_file_that_is_written_there(
    tmp_path, monkeypatch
):
    living = work.temporary(tmp_path)
    living.write_text("in the making")
    assert subprocess.run([sys.executable, "-c", HALF, tmp_path]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(work, "_tidied", set())
    work.write_atomic(tmp_path / "other", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "other"])


PARENT = """
import os, sys, time
from slmjax.text.claims import claimed
with claimed(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(1)  # a worker that has not yet seen that its parent is gone
        os._exit(0)
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_that_children_of_a_killed_process_still_hold_is_waited_for(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "run"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        process.kill()
        process.wait()
        with claimed(str(tmp_path / "run")) as claim:
            assert claim.mine()


def test_a_claim_leaves_nothing_behind_and_removes_what_a_kill_left(tmp_path):
    with claimed(str(tmp_path / "a" / "run")):
        pass
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "a[b]*"
    (folder / "figures").mkdir(parents=True)
    for leftover in (".tmp-1", "figures/.tmp-2", "kept"):
        (folder / leftover).write_text("half")
    with claimed(str(folder)):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "kept"]
    assert list((folder / "figures").iterdir()) == []


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_without_locks_the_newest_start_owns_the_folder_and_a_living_one_is_refused(
    tmp_path, monkeypatch, locks
):
    if locks == "none":
        monkeypatch.setattr(claims, "fcntl", None)
    else:
        monkeypatch.setattr(
            claims.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks"))
        )
    folder, record = str(tmp_path / "run"), tmp_path / "run" / claims.LOCK
    with claimed(folder) as earlier:
        assert earlier.mine()
        with claimed(folder) as newest:
            assert newest.mine() and not earlier.mine()
        assert not record.exists()
        host = json.loads(earlier._record)["host"]
        record.write_text(json.dumps({"host": host, "process": os.getppid(), "start": "1"}))
        with (
            pytest.raises(UserError, match=f"process {os.getppid()} on {host} is writing there"),
            claimed(folder),
        ):
            pass
        for other in (
            {"host": "elsewhere", "process": os.getppid()},
            {"host": host, "process": 2**22 + 1},
            [],
        ):
            record.write_text(json.dumps(other))
            with claimed(folder) as newest:
                assert newest.mine()


def test_an_index_that_another_curation_extends_is_refused_before_anything_is_read(
    tmp_path, holder, capsys
):
    (tmp_path / "a.txt").write_text("some words")
    index = tmp_path / "run"
    words = [
        "--config=configs/curate.py",
        f"--workdir={tmp_path / 'mine'}",
        f"--config.data.sources=a={tmp_path / 'a.txt'}",
    ]
    assert launch.main([*words, f"--config.curate.index={index}"]) == 2
    err = capsys.readouterr().err
    assert (
        f"config.curate.index={index}: process {holder.pid} on " in err
        and "another config.curate.index" in err
    )
    assert err.count("\n") == 1 and not (tmp_path / "mine").exists()


def test_of_several_processes_the_first_takes_the_folder_and_all_hear_of_a_refusal(
    tmp_path, holder
):
    with claimed(str(tmp_path / "other"), first=False) as claim:
        assert claim.mine() and not (tmp_path / "other").exists()
    heard = []
    with (
        pytest.raises(UserError, match="is writing there"),
        claimed(str(tmp_path / "run"), agree=lambda good: heard.append(good) or good),
    ):
        pass
    assert heard == [False]
    with (
        pytest.raises(UserError, match="the first process"),
        claimed(str(tmp_path / "run"), first=False, agree=lambda good: False),
    ):
        pass


def test_a_folder_of_another_stage_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"stage": "curate"}')
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from slmjax import config\nget_config = config.base\n")
    assert launch.main([f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert (
        "holds what the stage curate wrote; use another for the stage train."
        in capsys.readouterr().err
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_written_is_refused_and_a_device_is_written_through(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"), claimed(str(tmp_path / "file" / "run")):
        pass
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    work.write_atomic(tmp_path / "pipe", "all of it")
    assert os.read(reader, 99) == b"all of it" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_any_text_can_be_written(tmp_path):
    for text, data in (
        ("caf\udce9", b"caf\xe9"),
        ("half \ud83d", rb"half \ud83d"),
        ("whole \U0001f600", "whole \U0001f600".encode()),
    ):
        work.write_atomic(tmp_path / "file", text)
        assert (tmp_path / "file").read_bytes() == data
