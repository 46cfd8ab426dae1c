"""RegMix's own regressor: LightGBM on the weights of the domains (Liu et al. 2024)."""

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np

from slmjax.errors import UserError

# The settings of RegMix's notebook. It stops early on the runs that it is scored on, after three
# rounds without progress; here all rounds are run.
SETTINGS = {
    "task": "train",
    "boosting_type": "gbdt",
    "objective": "regression",
    "metric": ["l1", "l2"],
    "num_iterations": 1000,
    "seed": 42,
    "learning_rate": 1e-2,
    "verbosity": -1,
}
# LightGBM's default of 20 runs in a leaf predicts a constant from fewer than 40. Of 1, 2, 3, 5 and
# 10, three had the best rank correlation on RegMix's held-out 1M runs with 32 proxies.
PEERS = {"lightgbm": {}, "lightgbm-3": {"min_child_samples": 3}}


def has_lightgbm() -> bool:
    """Return whether LightGBM is installed."""
    return importlib.util.find_spec("lightgbm") is not None


def fit_lightgbm(
    weights: np.ndarray, losses: np.ndarray, who: str = "lightgbm"
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a predictor of losses [m, targets] from weights [m, domains].

    Args:
      who: one of PEERS.
    Raises: UserError where LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise UserError(
            "the peer needs LightGBM; install it with: pip install lightgbm."
        ) from error
    models = []
    for values in losses.T:
        model = lightgbm.LGBMRegressor(**SETTINGS, **PEERS[who], n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that num_iterations is another name of n_estimators
            models.append(model.fit(weights, values))

    def predict(mixtures: np.ndarray) -> np.ndarray:
        return np.stack([model.predict(mixtures) for model in models], 1)

    return predict
