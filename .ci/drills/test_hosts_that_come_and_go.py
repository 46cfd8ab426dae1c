"""A signal to one of four processes stops all; one goes on, and two from the checkpoint before."""

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
    four = tmp_path / "run"
    fields = {
        "data__cache": tmp_path / "prepared",
        "eval__every": 4,
    }  # prepared by all four, from nothing
    left = stop_all_by_one(corpus, expected, four, 4, monkeypatch, **fields)

    one = shutil.copytree(four, tmp_path / "one")
    go_on_alone(corpus, undisturbed, expected, one, left, monkeypatch, **fields)
    assert f"goes on from step {left}" in capsys.readouterr().out

    two = shutil.copytree(four, tmp_path / "two")
    for path in (two / "checkpoints" / str(left) / "params").rglob("d/*"):
        path.write_bytes(b"")
    before = runs.steps_saved(four)[-2]
    told = ends(start_all(corpus, two, 2, 2, monkeypatch, data__workers=3, **fields))
    assert [status for status, _, _ in told] == [0, 0], told
    assert (
        told[0][1].count("it is damaged") == 1
        and f"goes on from step {before}" in told[0][1]
        and told[1][1] == ""
    )
    assert [path.name for path in (two / "checkpoints-aside").iterdir()] == [str(left)]
    np.testing.assert_allclose(runs.losses(two)[1], runs.losses(undisturbed)[1], rtol=1e-5)
    assert batches_read(two, before) == {step: expected[step] for step in range(before, STEPS)}
    bits = [runs.metrics.series(runs.metrics.read(run), "eval/bits_per_byte") for run in (two, one)]
    np.testing.assert_array_equal(bits[0][0], [4, 8, 12, 16, 20, 24, 28, 30])
    np.testing.assert_allclose(bits[0][1], bits[1][1], rtol=1e-5)
    assert (two / "report.html").exists() and (two / "heldout.npz").exists()
