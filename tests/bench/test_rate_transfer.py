"""Grids of finished runs to a table of best rates and costs."""

import json

import numpy as np
import pytest

from slmjax import config as configs
from slmjax.bench import rate_transfer
from slmjax.record import metrics

RATES = [1e-3 * 2**i for i in range(5)]


def write_grid(folder, best, loss, steps=10, **fields):
    """Runs whose last bits per byte are a parabola around `best`."""
    for rate in RATES:
        c = configs.base()
        c.train.update({"lr": rate, "steps": steps, "warmup": 1, **fields})
        run = folder / f"{rate:g}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(configs.to_json(configs.freeze(c)))
        value = loss + 0.03 * np.log2(rate / best) ** 2
        with metrics.MetricsWriter(run) as writer:
            writer.write(5, {"eval/bits_per_byte": 9.0})
            writer.write(10, {"eval/bits_per_byte": value})
        key = np.arange(3, dtype=np.uint64)
        columns = {"keys": key, "nats": np.ones(3, np.float32), "bytes": np.ones(3, np.int64)}
        np.savez(run / "heldout.npz", **{f"all/{name}": col for name, col in columns.items()})
    return str(folder / "*")


def words(tmp_path):
    grids = {
        "base": write_grid(tmp_path / "small", 4e-3, 1.3),
        "transferred": write_grid(tmp_path / "rule", 4.4e-3, 1.1),
        "untransferred": write_grid(tmp_path / "plain", 2e-3, 1.12),
    }
    return [f"--{name}={pattern}" for name, pattern in grids.items()]


def test_the_table_has_the_cost_of_the_small_models_rate_with_and_without_the_rule(
    tmp_path, capsys
):
    assert rate_transfer.main(words(tmp_path)) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| base | 0.004 | 1.3000 |")
    ruled, plain = 0.03 * np.log2(1.1) ** 2 / 1.1, 0.03 / 1.12
    assert rows[3].endswith(f"| {ruled:.2%} |") and rows[4].endswith(f"| {plain:.2%} |")


def test_what_is_no_finished_grid_is_refused(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        good = words(tmp_path)
        unfinished = write_grid(tmp_path / "cut", 4e-3, 1.3, steps=20)
        mixed = write_grid(tmp_path / "mixed", 4e-3, 1.3)
        config = tmp_path / "mixed" / "0.004" / "config.json"
        values = json.loads(config.read_text())
        values["train"]["batch"] = 7
        config.write_text(json.dumps(values))
        for pattern, sentence in (
            ("nothing/*", "matches no work directory"),
            (unfinished, "has no eval/bits_per_byte at its last step, 20"),
            (mixed, "config.train.batch=7"),
        ):
            assert rate_transfer.main([f"--base={pattern}", *good[1:]]) == 2
            assert sentence in capsys.readouterr().err
