"""A signal to one of four processes stops all four, and fewer processes go on.

One process goes on from the checkpoint that they saved; two go on from the one before, as the last
one is damaged.
"""

import shutil

import numpy as np

from tests import runs
from tests.parallel.test_hosts import (
    STEPS,
    batches_read,
    ends,
    expected,  # noqa: F401 (a fixture)
    go_on_alone,
    start_all,
    stop_all_by_one,
)


def test_a_signal_to_one_of_four_stops_all_and_two_or_one_go_on(
    corpus,
    undisturbed,
    expected,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    # Work directories of the run of four processes, and of its copies that one and two continue.
    four, one, two = tmp_path / "run", tmp_path / "one", tmp_path / "two"
    # The text is prepared by all four together: the cache is empty.
    fields = {"data__cache": tmp_path / "prepared", "eval__every": 4}
    last_saved = stop_all_by_one(corpus, expected, four, 4, monkeypatch, **fields)

    shutil.copytree(four, one)
    go_on_alone(corpus, undisturbed, expected, one, last_saved, monkeypatch, **fields)
    assert f"goes on from step {last_saved}" in capsys.readouterr().out

    shutil.copytree(four, two)
    for path in (two / "checkpoints" / str(last_saved) / "params").rglob("d/*"):
        path.write_bytes(b"")
    before = runs.steps_saved(four)[-2]
    processes = start_all(corpus, two, 2, 2, monkeypatch, data__workers=3, **fields)
    results = ends(processes)  # of each process: (status, standard output, standard error)
    assert [status for status, _, _ in results] == [0, 0], results
    # Only the first process prints.
    (_, first_output, _), (_, second_output, _) = results
    assert first_output.count("it is damaged") == 1
    assert f"goes on from step {before}" in first_output
    assert second_output == ""
    assert [path.name for path in (two / "checkpoints-aside").iterdir()] == [str(last_saved)]
    # Not equal bit for bit: sums over processes are taken in another order.
    np.testing.assert_allclose(runs.losses(two)[1], runs.losses(undisturbed)[1], rtol=1e-5)
    assert batches_read(two, before) == {step: expected[step] for step in range(before, STEPS)}
    steps_of_two, bits_of_two = bits_per_byte(two)
    _, bits_of_one = bits_per_byte(one)
    np.testing.assert_array_equal(steps_of_two, [4, 8, 12, 16, 20, 24, 28, 30])
    np.testing.assert_allclose(bits_of_two, bits_of_one, rtol=1e-5)
    assert (two / "report.html").exists() and (two / "heldout.npz").exists()


def bits_per_byte(workdir):
    """Return (steps, held-out bits per byte) of a run's evaluations."""
    return runs.metrics.series(runs.metrics.read(workdir), "eval/bits_per_byte")
