"""Ladders whose law is known, for the tests of scaling fits."""

import numpy as np

from slmjax.studies.ladder_runs import LadderRun

MILLION = 10**6
# Two seeds at the three small ones of five sizes.
SIZES = [5, 10, 20, 50, 100]
SEEDS = [2, 2, 2, 1, 1]


def run(parameters, tokens, seed=0, loss=1.0, /, **changed):
    fields = {
        "name": f"{parameters}-{tokens}-{seed}",
        "parameters": parameters,
        "matmul_parameters": parameters,
        "flops_per_token": 6.0 * parameters,
        "tokens": tokens,
        "seed": seed,
        "loss": loss,
        "heldout": "documents",
        "fully_decayed": True,
    }
    return LadderRun(**(fields | changed))


def ladder(law, sizes=SIZES, seeds=SEEDS, *, tokens=lambda size: 100, noise=0.0, chance=0):
    """Runs of a law, with sizes and tokens in millions and normal noise of log loss."""
    chance = np.random.default_rng(chance)
    runs = []
    for size, number in zip(sizes, seeds, strict=True):
        shape = round(size * MILLION), round(tokens(size) * MILLION)
        for seed in range(number):
            loss = float(law.loss(*shape)) * np.exp(noise * chance.standard_normal())
            runs.append(run(*shape, seed, float(loss)))
    return runs


def grid(law, sizes, tokens, *, noise=0.0, chance=0):
    """Runs of every size with every number of tokens, in millions; two seeds of the smallest size."""
    chance = np.random.default_rng(chance)
    runs = []
    for number in tokens:
        seeds = [2] + [1] * (len(sizes) - 1)
        fixed = lambda size, number=number: number
        runs += ladder(law, sizes, seeds, tokens=fixed, noise=noise, chance=chance)
    return runs
