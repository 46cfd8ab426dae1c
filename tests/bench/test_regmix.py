"""The bench of mixture regression: its scores by hand, its files as described, its command at small size, and its peer against RegMix's published figure."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest

from slmjax.bench import regmix
from slmjax.bench.peers.regmix_lightgbm import fit_lightgbm
from slmjax.errors import UserError
from slmjax.studies.mixture_fit import fit_mixture_losses

SHARED = Path(os.environ.get("SLMJAX_SHARED", Path(__file__).parents[2] / "../shared/data"))
NAMES = ("arxiv", "github", "pile_cc")


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder like the shared one: 8 proxies and 6 held-out runs on three domains, two losses."""
    folder = tmp_path / "regmix"
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, size, runs in (("train", "1m", 8), ("test", "60m", 6), ("test", "1m", 6)):
        weights = random.dirichlet(np.ones(3), runs).round(3)
        losses = np.exp(1 - np.sqrt(weights) @ random.random((3, 2)))
        write(folder, part, size, weights, losses)
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))
    return folder


def write(folder, part, size, weights, losses, first=1):
    heads = (
        ("mixture", [f"train_the_pile_{name}" for name in NAMES], weights),
        ("pile_loss", [f"metric/the_pile_{name}_val_loss" for name in NAMES[1:]], losses),
    )
    for kind, names, values in heads:
        lines = [",".join(["index", *names])]
        start = first if kind == "mixture" else 1
        for number, row in enumerate(values, start):
            lines.append(",".join(map(str, [number, *row])))
        (folder / f"{part}_{kind}_{size}.csv").write_text("\n".join(lines) + "\n")


def asked(**changed):
    return argparse.Namespace(
        **{"proxies": [4, 8], "subsets": 2, "heldout": "60m", "no_peers": True} | changed
    )


def test_rank_and_regret_are_those_of_hand_made_predictions():
    measured = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0], [4.0, 4.0]])
    predicted = np.array([[2.0, 5.0], [3.0, 5.0], [1.0, 5.0], [4.0, 5.0]])
    (ranks, regrets) = regmix.score(predicted, measured)
    # Ranks 2, 3, 1, 4 against 3, 1, 2, 4: 1 - 6 * (1 + 4 + 1) / (4 * 15).
    np.testing.assert_allclose(ranks, [0.4, 0])
    # The third run is predicted best; a constant prediction picks any run.
    np.testing.assert_allclose(regrets, [1.0, 1.5])


def test_the_command_scores_all_regressors_on_the_same_subsets(shared):
    result = regmix.run(asked())
    whos = [row["who"] for row in result["rows"]]
    assert whos == ["slmjax", "ridge", "process", "law"] * 2
    for row in result["rows"]:
        assert -1 <= row["rank"] <= 1 and row["regret"] >= 0
    assert [row["loss"] for row in result["sets"]] == ["github", "pile_cc"] * 2
    # All proxies at once are one subset, whichever the order: the same as fitting them here.
    proxies, heldout = (
        regmix.read_runs(shared, *names) for names in (("train", "1m"), ("test", "60m"))
    )
    ranks, regrets = regmix.score(
        fit_mixture_losses(proxies).predict(heldout.weights), heldout.losses
    )
    row = result["rows"][4]
    assert row["rank"] == pytest.approx(ranks[1]) and row["regret"] == pytest.approx(regrets[1])
    assert row["rank_low"] <= row["rank"] <= row["rank_high"]
    assert row["rank_all"] == pytest.approx(ranks.mean())


def test_differences_to_lightgbm_are_paired(shared):
    pytest.importorskip("lightgbm")
    rows = {row["who"]: row for row in regmix.run(asked(proxies=[4], no_peers=False))["rows"]}
    for peer in ("lightgbm", "lightgbm-3"):
        assert rows[f"slmjax - {peer}"]["rank"] == pytest.approx(
            rows["slmjax"]["rank"] - rows[peer]["rank"]
        )
    # Leaves of 20 runs cannot be made of four.
    assert rows["lightgbm"]["rank"] == 0


def test_rounded_weights_are_scaled_to_sum_to_one(shared):
    write(shared, "train", "1m", np.array([[0.333, 0.333, 0.333]]), np.ones((1, 2)))
    proxies = regmix.read_runs(shared, "train", "1m")
    assert proxies.domains == list(NAMES) and proxies.targets == list(NAMES[1:])
    np.testing.assert_allclose(proxies.weights, 1 / 3)


def test_files_that_do_not_fit_and_too_many_proxies_are_refused(shared):
    with pytest.raises(UserError, match="--proxies: there are 8"):
        regmix.run(asked(proxies=[9]))
    with pytest.raises(UserError, match="--subsets: expected 2 or more, found 1"):
        regmix.run(asked(subsets=1))
    write(shared, "test", "60m", np.ones((2, 3)), np.ones((2, 2)), first=7)
    with pytest.raises(UserError, match="test 60m are not of the same runs"):
        regmix.run(asked())
    (shared / "train_mixture_1m.csv").write_text("index,a\n1,many\n")
    with pytest.raises(UserError, match="expected a table of numbers"):
        regmix.run(asked())
    write(shared, "train", "1m", np.ones((8, 3)), np.ones((8, 2)))
    (shared / "train_pile_loss_1m.csv").unlink()
    with pytest.raises(UserError, match=r"train_pile_loss_1m\.csv is missing; SLMJAX_SHARED"):
        regmix.run(asked())


@pytest.fixture
def public():
    if not (SHARED / "regmix").is_dir():
        pytest.skip(f"{SHARED / 'regmix'} is absent; set SLMJAX_SHARED to the shared data")
    return regmix.read_runs(SHARED / "regmix", "train", "1m"), regmix.read_runs(
        SHARED / "regmix", "test", "1m"
    )


def test_the_peer_reaches_regmixs_published_rank_correlation(public):
    """98.92 % on Pile-CC from 512 runs of 1M to 256 (Liu et al. 2024), with early stopping on the 256."""
    pytest.importorskip("lightgbm")
    proxies, heldout = public
    target = proxies.targets.index("pile_cc")
    predict = fit_lightgbm(proxies.weights, proxies.losses[:, [target]])
    (rank,), _ = regmix.score(predict(heldout.weights), heldout.losses[:, [target]])
    assert rank == pytest.approx(0.9892, abs=0.0015)


def test_32_public_proxies_rank_held_out_mixtures(public):
    proxies, heldout = public
    target = [proxies.targets.index("pile_cc")]
    few = proxies._replace(
        weights=proxies.weights[:32], targets=["pile_cc"], losses=proxies.losses[:32][:, target]
    )
    (rank,), (regret,) = regmix.score(
        fit_mixture_losses(few).predict(heldout.weights), heldout.losses[:, target]
    )
    assert rank > 0.9 and regret < 0.1
