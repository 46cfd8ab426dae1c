"""metrics.jsonl: what is written is read back, through kills, restarts and broken numbers."""

import errno
import json
import math
import os
import struct
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.record import metrics
from slmjax.record.metrics import MetricsWriter


def test_what_is_written_is_read_back(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(
            1,
            {
                "train/loss": np.float32(2.5),
                "train/tokens": np.int64(512),
                "array": np.ones((1, 1)),
            },
        )
        writer.event("samples", 1, samples=[{"prompt": "Zoë\u2028", "text": "line\nline"}])
    records = metrics.read(tmp_path / "run")
    assert {
        key: records.kept[0][key] for key in ("step", "train/loss", "train/tokens", "array")
    } == {
        "step": 1,
        "train/loss": 2.5,
        "train/tokens": 512,
        "array": 1.0,
    }
    assert metrics.events(records, "samples")[0]["samples"] == [
        {"prompt": "Zoë\u2028", "text": "line\nline"}
    ]


@given(st.lists(st.floats(width=64), min_size=1, max_size=8))
def test_lines_are_strict_json_and_nonfinite_values_come_back_as_they_were(
    tmp_path_factory, values
):
    folder = tmp_path_factory.mktemp("run")
    with MetricsWriter(folder) as writer:
        for step, value in enumerate(values):
            writer.write(step, {"train/loss": value})
        writer.event("nested", len(values), deep={"list": [1.0, *values]})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for line in (folder / "metrics.jsonl").read_text().split("\n"):
        if line:
            json.loads(line, parse_constant=refuse)
    records = metrics.read(folder)
    np.testing.assert_array_equal([record["train/loss"] for record in records.kept[:-1]], values)
    np.testing.assert_array_equal(records.kept[-1]["deep"]["list"], [1.0, *values])


def test_nan_loss_stays_in_the_series(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 1.0})
        writer.write(2, {"train/loss": math.nan})
    steps, values = metrics.series(metrics.read(tmp_path), "train/loss")
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, [1.0, math.nan])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=5))
def test_a_resumed_run_reads_like_an_undisturbed_one(tmp_path_factory, sessions):
    """Each session goes on from some step that the one before had reached; a plain dict plays the reader."""
    folder, truth, reached = tmp_path_factory.mktemp("run"), {}, 0
    for number, (back, length) in enumerate(sessions):
        start = max(0, reached - back)
        truth = {step: loss for step, loss in truth.items() if step <= start}
        with MetricsWriter(folder, resume_step=start if number else None) as writer:
            for step in range(start + 1, start + length + 1):
                truth[step] = 100 * number + step
                writer.write(step, {"train/loss": truth[step]})
        reached = start + length
    records = metrics.read(folder)
    steps, values = metrics.series(records, "train/loss")
    assert dict(zip(steps.tolist(), values.tolist(), strict=True)) == truth
    assert len(records.all) == sum(length for _, length in sessions) + len(sessions) - 1


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_costs_itself_and_not_the_next_one(tmp_path, cut):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, {"train/loss": 30.0})
    records = metrics.read(tmp_path)
    assert metrics.series(records, "train/loss")[1].tolist() == [1.0, 2.0, 30.0]
    assert records.torn == (0 if cut == 1 else 1)  # without its newline only, the line is whole


def test_a_step_recorded_twice_has_its_last_value(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"eval/bits_per_byte": 8.0})
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(0, {"eval/bits_per_byte": 7.0})
    assert metrics.series(metrics.read(tmp_path), "eval/bits_per_byte")[1].tolist() == [7.0]


def test_segments_of_an_object_store_read_like_a_file(tmp_path, monkeypatch):
    """Small segments, two sessions, one of them killed after its last flush: the same series as from one local file."""
    monkeypatch.setattr(metrics.Segments, "LIMIT", 300)
    monkeypatch.setattr(metrics, "_is_remote", lambda folder: folder.name == "remote")
    for name in ("remote", "local"):
        with MetricsWriter(tmp_path / name) as writer:
            for step in range(1, 40):
                writer.write(step, {"train/loss": 1.0 / step})
        killed = MetricsWriter(tmp_path / name, resume_step=20)
        for step in range(21, 31):
            killed.write(step, {"train/loss": 2.0 / step})
        killed.flush()
    remote, local = metrics.read(tmp_path / "remote"), metrics.read(tmp_path / "local")
    assert len(list((tmp_path / "remote" / "metrics").iterdir())) > 3
    assert not (tmp_path / "remote" / "metrics.jsonl").exists()
    for one, other in zip(
        metrics.series(remote, "train/loss"), metrics.series(local, "train/loss"), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert [record["step"] for record in remote.all] == [record["step"] for record in local.all]


def test_axes_interpolate_and_seconds_leave_out_the_time_between_sessions(tmp_path):
    lines = [
        {"event": "start", "step": 0, "time": 100.0},
        {"step": 10, "time": 110.0, "train/tokens": 1000},
        {"step": 20, "time": 120.0, "train/tokens": 2000},
        {"step": 30, "time": 130.0, "train/tokens": 3000},
        {"event": "resume", "step": 20, "time": 500.0},
        {"event": "start", "step": 20, "time": 501.0},
        {"step": 30, "time": 516.0, "train/tokens": 3000},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = metrics.read(tmp_path)
    assert metrics.along(records, np.array([5, 20, 25]), "train/tokens").tolist() == [
        500.0,
        2000.0,
        2500.0,
    ]
    assert metrics.along(records, np.array([10, 20, 30]), "seconds").tolist() == [10.0, 20.0, 35.0]
    assert metrics.along(records, np.array([10]), "train/flops") is None


def test_tensorboard_files_hold_the_scalars(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        writer.write(3, {"train/loss": 1.5, "note": "text is not a scalar"})
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # a TFRecord: length, its checksum, payload, its checksum
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + size :]
    assert found == {("train/loss", 3): 1.5}


def test_wandb_missing_is_one_sentence_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsWriter(tmp_path / "run", wandb="project")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, monkeypatch):
    identities, logged = [], []

    def init(*, project, id, resume, config):
        identities.append(id)
        return types.SimpleNamespace(
            define_metric=lambda *a, **k: None, log=logged.append, finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for resume in (None, 0):
        with MetricsWriter(tmp_path, wandb="project", resume_step=resume) as writer:
            writer.write(1, {"train/loss": 1.0})
    assert identities[0] == identities[1]
    assert logged == [{"step": 1, "train/loss": 1.0}] * 2


def test_an_inactive_writer_touches_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", active=False, tensorboard=True, wandb="project") as writer:
        writer.write(1, {"train/loss": 1.0})
        writer.event("finish", 1)
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir"):
        MetricsWriter(tmp_path / "file" / "run")


def test_a_tensorboard_folder_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match=r"tensorboard: .*--workdir"):
        MetricsWriter(tmp_path, tensorboard=True)


@pytest.mark.parametrize("call", ["add_scalar", "flush", "close"])
def test_a_full_disk_under_tensorboard_is_the_users_error(tmp_path, monkeypatch, call):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with MetricsWriter(tmp_path, tensorboard=True) as writer, monkeypatch.context() as patch:
        patch.setattr(writer._board, call, refuse)
        with pytest.raises(UserError, match="tensorboard: No space left on device"):
            writer.write(1, {"train/loss": 1.0})
            writer.flush()
            writer.close()


def test_a_full_disk_is_the_users_error(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer._lines._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match="space"):
        writer.write(1, {"train/loss": 1.0})


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        '{"event": "resume"}',
        '{"step": "3", "train/loss": 1.0}',
        '{"step": 1e999}',
        '{"step": 2.5}',
        '{"step": 99999999999999999999}',
        '{"step": -1}',
        '{"step": 3, "time": "now"}',
        '{"step": 3, "train/loss": {}}',
        '{"step": 3, "nonfinite": {"a > b": "nan"}}',
        "[" * 100_000,
    ],
)
def test_a_line_that_no_writer_wrote_is_counted_and_skipped(line, tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": float("nan")})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, {"train/loss": 0.5})
    found = metrics.read(tmp_path)
    assert found.torn == 1 and [record["step"] for record in found.kept] == [1, 1, 2]
    assert metrics.series(found, "train/loss")[0].tolist() == [1, 2]


def test_a_line_that_has_changed_since_is_counted_and_skipped_however_it_is_laid_out(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 1.25, "train/grad_norm": float("inf")})
        writer.event("goodput", 1, session="a", seconds={"start": 1.5})
    path = tmp_path / "metrics.jsonl"
    whole, lines = metrics.read(tmp_path), path.read_text().splitlines()
    assert whole.torn == 0 and all("crc32" not in record for record in whole.all)
    turned = [
        json.dumps(dict(reversed(json.loads(line).items())), indent=None, separators=(",", ":"))
        for line in lines
    ]
    path.write_text("\n".join(turned) + "\n")
    assert metrics.read(tmp_path) == whole
    changes = [
        ("1.25", "1.5"),
        ('"inf"', '"nan"'),
        ('"session"', '"sessions"'),
        ('{"start": 1.5}', "[]"),
        ('"step": 1', '"step": 2'),
    ]
    for before, after in changes:
        path.write_text("\n".join(line.replace(before, after) for line in lines) + "\n")
        assert metrics.read(tmp_path).torn == sum(before in line for line in lines) > 0
    older = [
        {name: value for name, value in json.loads(line).items() if name != "crc32"}
        for line in lines
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in older))
    assert metrics.read(tmp_path) == whole


def test_a_line_whose_checksum_is_lost_is_counted_but_a_run_may_begin_without_any(tmp_path):
    """The lines of an earlier version have none, up to the start that writes them."""
    for events in (("start", "data"), ("start", "start")):
        with MetricsWriter(tmp_path / events[1]) as writer:
            for event in events:
                writer.event(event, 0)
            writer.write(1, {"train/loss": 2.0})
        file = tmp_path / events[1] / "metrics.jsonl"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([lines[0].replace("crc32", "crc33"), *lines[1:]]) + "\n")
        first = {key: value for key, value in json.loads(lines[0]).items() if key != "crc32"}
        bare = "\n".join([json.dumps(first), *lines[1:]]) + "\n"
        for text in (file.read_text(), bare):
            file.write_text(text)
            found = metrics.read(tmp_path / events[1])
            assert (len(found.all), found.torn) == ((3, 0) if events[1] == "start" else (2, 1))
        file.write_text("\n".join([*lines[:2], lines[2].replace("crc32", "crc3")]) + "\n")
        assert metrics.read(tmp_path / events[1]).torn == 1
