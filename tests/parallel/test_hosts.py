"""Several processes as one program: one signal stops all at one step, and any other number of processes goes on from there."""

import json
import os
import signal
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from slmjax import cli
from slmjax.data.loader import batch_rows
from slmjax.data.prepare_stage import batch_plan, prepared_text
from slmjax.data.rows import Field
from slmjax.errors import UserError
from slmjax.parallel import hosts
from slmjax.parallel.mesh import batch_sharding, make_mesh
from slmjax.parallel.rules import field_shardings
from slmjax.train import loop
from slmjax.train.leave import Leave
from tests import runs
from tests.data.batch_hashes import batch_hash, combine_hashes
from tests.parallel import member

STEPS, BATCH = 30, 16


def start_all(corpus, workdir, count, devices, monkeypatch, **fields):
    """`count` processes of one run; the rows that each reads are noted in `<workdir>-rows`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("SLMJAX_TEST_ROWS", f"{workdir}-rows")
    flags = (f"--coordinator=localhost:{port}", f"--processes={count}")
    return [
        runs.start(
            corpus,
            workdir,
            *flags,
            f"--process={i}",
            devices=devices,
            module="tests.parallel.member",
            **fields,
        )
        for i in range(count)
    ]


def ends(processes):
    """[(exit status, stdout, stderr)]; stdout without what Gloo says of its connections.

    Gloo's threads write at the same time, which may leave empty lines.
    """
    try:
        out = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [
        "".join(line for line in text.splitlines(keepends=True) if _is_ours(line))
        for text, _ in out
    ]
    return [
        (process.returncode, text, error) for process, text, (_, error) in zip(processes, said, out)
    ]


def _is_ours(line):
    return line.strip() and "Gloo" not in line and "peer ranks" not in line


def batches_read(workdir, start):
    """{step: digest of the global batch} of the session that began at step `start`; every row is held by exactly one process."""
    rows = {}
    for path in (workdir.parent / f"{workdir.name}-rows").glob(f"*-{start}.jsonl"):
        for record in map(json.loads, path.read_text().splitlines()):
            at = rows.setdefault(record["step"], {})
            assert not at.keys() & set(record["rows"])
            at |= zip(record["rows"], record["hashes"])
    complete = {
        step: found for step, found in rows.items() if len(found) == BATCH
    }  # the last are still read by some only
    return {
        step: combine_hashes(found[row] for row in range(BATCH)) for step, found in complete.items()
    }


@pytest.fixture
def expected(corpus, tmp_path):
    """{step: digest of the global batch}, read here and now in one process."""
    config = cli.make_config(*cli.read_options(runs.argv(corpus, tmp_path)))
    prepared = prepared_text(config.data, str(tmp_path))
    plan = batch_plan(config.data, config.train, prepared, seed=config.seed)
    return {step: batch_hash(batch_rows(plan, step, range(BATCH))) for step in range(STEPS)}


@pytest.mark.slow
def test_a_signal_to_one_of_two_stops_both_and_one_goes_on(
    corpus, undisturbed, expected, tmp_path, monkeypatch, capsys
):
    """The short form of .ci/drills/test_hosts_that_come_and_go.py."""
    fields = {"data__cache": tmp_path / "prepared"}  # prepared by both, from nothing
    left = stop_all_by_one(corpus, expected, tmp_path / "two", 2, monkeypatch, **fields)
    go_on_alone(corpus, undisturbed, expected, tmp_path / "two", left, monkeypatch, **fields)
    assert f"goes on from step {left}" in capsys.readouterr().out


def stop_all_by_one(corpus, expected, workdir, count, monkeypatch, **fields):
    """Start `count` processes, send the last one SIGTERM; all must save and leave at one step, which is returned."""
    processes = start_all(corpus, workdir, count, 1, monkeypatch, **fields)
    if runs.wait_for_step(workdir, 6, processes[0]):
        processes[-1].send_signal(signal.SIGTERM)
    told = ends(processes)
    assert [status for status, _, _ in told] == [143] * count, told
    assert "Saved and left as asked" in told[0][1] and not any(text for _, text, _ in told[1:])
    (left,) = [event["step"] for event in runs.events(workdir, "preempted")]
    assert 6 < left < STEPS and runs.steps_saved(workdir)[-1] == left
    theirs = batches_read(workdir, 0)
    assert len(theirs) >= left and theirs == {step: expected[step] for step in theirs}
    return left


def go_on_alone(corpus, undisturbed, expected, workdir, left, monkeypatch, **fields):
    """One process takes the run over from step `left` and ends as the undisturbed one."""
    monkeypatch.setenv("SLMJAX_TEST_ROWS", f"{workdir}-rows")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "local_batches", member.Noting)
        assert runs.train(corpus, workdir, data__workers=1, **fields) == 0
    assert batches_read(workdir, left) == {step: expected[step] for step in range(left, STEPS)}
    np.testing.assert_allclose(
        runs.losses(workdir)[1], runs.losses(undisturbed)[1], rtol=1e-5
    )  # sums in another order


def test_ctrl_c_in_one_of_several_is_passed_on_to_the_service_that_agrees(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    caught, before = [], signal.signal(signal.SIGTERM, lambda *_: caught.append("SIGTERM"))
    try:
        with Leave() as leave:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught == ["SIGTERM"] and leave.status == 130
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}]
)
def test_a_global_batch_is_put_together_from_the_rows_that_a_process_holds(sizes):
    mesh = make_mesh(sizes)
    sharding, fields = (
        batch_sharding(mesh),
        {
            "tokens": Field((BATCH, 4), "int64", ("batch", None)),
            "places": Field((3,), "int8", (None,)),
        },
    )
    held = hosts.local_rows(sharding, BATCH, 4)
    assert held.tolist() == list(range(BATCH))
    whole = np.arange(BATCH * 4).reshape(BATCH, 4)
    found = hosts.global_batch({"tokens": whole}, fields, field_shardings(fields, mesh), held)
    np.testing.assert_array_equal(found["tokens"], whole)
    assert found["tokens"].sharding == sharding and found["places"].sharding.is_fully_replicated


def test_a_process_holds_the_rows_of_its_own_devices_only():
    devices = jax.devices()
    spread = {devices[i]: (slice(2 * i, 2 * i + 2), slice(None)) for i in (1, 2)}
    sharding = types.SimpleNamespace(addressable_devices_indices_map=lambda shape: spread)
    assert hosts.local_rows.__wrapped__(sharding, 16, 4).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "arguments", [("host:1", 0, -1), ("", 2, 0), ("host:1", 2, 2), ("host:1", 2, -1)]
)
def test_some_of_the_three_arguments_are_refused(arguments):
    with pytest.raises(hosts.UserError, match="go together"):
        hosts.start_processes(*arguments)


def test_one_process_agrees_with_itself():
    assert (
        hosts.is_first()
        and hosts.agree(7) == 7
        and hosts.all_agree(True)
        and not hosts.all_agree(False)
    )
    assert hosts.leaving_together(3, True) and not hosts.leaving_together(3, False)
    hosts.barrier("alone")


def waits(coordinator, process, processes, limit):
    """A process that waits for others, with a line each second."""
    script = (
        f"from slmjax.parallel import hosts; hosts.FIRST_LINE, hosts.NEXT_LINE, hosts.LIMIT = 1, 1, {limit}; "
        f"hosts.start_processes({coordinator!r}, {processes}, {process})"
    )
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


def test_processes_that_wait_for_others_say_where_and_for_how_many_and_end_at_ctrl_c():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        here = f"localhost:{free.getsockname()[1]}"
    both = [waits(here, i, 4, limit=100) for i in range(2)]
    expected = (
        f"Process 0 of 4 waits at {here} until all have joined: 2 missing (",
        f"Process 1 of 4 has reached process 0 at {here} and waits until all have joined (",
    )
    try:
        for process, sentence in zip(both, expected):
            assert any(
                line.startswith(sentence) for line in process.stderr
            )  # reads on until it comes
        for process in reversed(both):  # the first one last: the others wait for it
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == -signal.SIGINT
    finally:
        for process in both:
            process.kill()


def test_a_process_whose_coordinator_never_comes_says_so_and_gives_up():
    process = waits("localhost:1", 1, 2, limit=2)
    said = process.communicate(timeout=60)[1].splitlines()
    assert said[0].startswith(
        "Process 1 of 2 waits for process 0, which does not answer at localhost:1 ("
    )
    assert said[-1].startswith("slmjax: gave up after 2.") and process.returncode == 2


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, True),  # a TPU VM: JAX asks its metadata server
        ({"COLAB_RELEASE_TAG": "release-colab"}, False),
        ({"COLAB_RELEASE_TAG": "release-colab", "JAX_COORDINATOR_ADDRESS": "host0:1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_colabs_tpu_is_alone_and_other_tpus_ask_for_their_slice(monkeypatch, environment, several):
    for name in (
        "JAX_COORDINATOR_ADDRESS",
        "SLURM_NTASKS",
        "COLAB_RELEASE_TAG",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hosts.os.path, "exists", lambda path: path == "/dev/vfio/0")
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: name)
    assert hosts.is_one_of_several() is several


def test_a_coordinator_without_port_is_refused():
    with pytest.raises(UserError, match="--coordinator=host0: expected HOST:PORT"):
        hosts.start_processes("host0", 2, 0)


@pytest.mark.parametrize("kind", ["cuda", "nowhere"])
def test_a_kind_of_device_that_is_not_here_is_told(kind):
    program = "from slmjax import cli\nfrom slmjax.parallel import hosts\ncli.script(lambda: cli.entry(lambda words: hosts.start_processes(), []))"
    environment = {**os.environ, "JAX_PLATFORMS": kind}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=runs.ROOT,
    )
    if kind == "cuda" and done.returncode == 0:
        pytest.skip("there is a GPU")
    assert (
        done.returncode == 2
        and f"slmjax: JAX finds no device of JAX_PLATFORMS={kind} (" in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fault", ["port in use", "half of an environment"])
def test_what_keeps_processes_from_joining_is_told(fault):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = (
            {**os.environ, "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}
            if fault == "half of an environment"
            else dict(os.environ)
        )
        given = f"'127.0.0.1:{taken.getsockname()[1]}', 2, 0" if fault == "port in use" else ""
        imports = "from slmjax import cli\nfrom slmjax.parallel import hosts\n"
        program = f"{imports}cli.script(lambda: cli.entry(lambda words: hosts.start_processes({given}), []))"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=runs.ROOT,
            timeout=60,
        )
    assert (
        done.returncode == 2
        and "slmjax: the processes cannot be joined: " in done.stderr
        and "Traceback" not in done.stderr
    )
