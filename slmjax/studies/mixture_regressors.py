"""Regressors that predict losses from mixture weights: ridge, Gaussian process, exponential law.

Each is fitted to proxies: weights [n, domains], whose rows sum to 1, and losses [n, targets], all
above 0. Its settings (penalties, length scales) are shared by all targets and chosen on the proxies
alone. `left_out` [n, targets] are its leave-one-out predictions: each proxy's losses as predicted
from the other proxies, with the settings that were chosen on all.

scikit-learn and scipy are imported late; they are the extra `studies`.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError

Weights = Float[np.ndarray, "n domains"]
Losses = Float[np.ndarray, "n targets"]
Predict = Callable[[np.ndarray], np.ndarray]  # weights [m, domains] -> losses [m, targets]

RIDGE_PENALTIES = np.logspace(-4, 2, 25)
# Penalties on the law's exponents, for losses in units of their standard deviation.
LAW_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
# Where the law's search starts: its constant as a share of the lowest loss.
LAW_STARTS = (0.5, 0.8, 0.95)
# Residual from which on the law counts a proxy linearly, in standard deviations of the losses.
LAW_HUBER = 0.5
LAW_TOLERANCE = 1e-6  # of the search, relative
HIGHEST_EXPONENT = 20.0  # of the law; keeps exp finite while the search steps too far


class FittedRegressor(NamedTuple):
    """A regressor fitted to proxies.

    predict: weights [m, domains] -> losses [m, targets].
    settings: as chosen; the function that fitted it takes them to fit other proxies.
    left_out: leave-one-out predictions [n, targets]; None where the settings were given.
    parameters: the law's constants, see `fit_law`; None for the other two.
    """

    predict: Predict
    settings: Any
    left_out: np.ndarray | None = None
    parameters: np.ndarray | None = None


def fit_ridge(weights: Weights, losses: Losses, settings: Any = None) -> FittedRegressor:
    """Return ridge regression of log losses on the square roots of the weights.

    Square roots because a domain's first tokens teach most. Logarithms because errors grow with the
    loss: on RegMix's 1M proxies the leave-one-out error of Pile-CC is 0.082 with 128 of them, and
    0.087 for plain losses.

    Args:
      settings: the penalty; None chooses it by leave-one-out over RIDGE_PENALTIES.
    Raises: UserError without scikit-learn.
    """
    linear_model = studies_library("sklearn.linear_model")
    roots, logs = np.sqrt(weights), np.log(losses)
    left_out = None
    if settings is None:
        # In units of their standard deviation all targets count equally in the choice.
        scale = logs.std(0)
        # With a scoring, cv_results_ are the predictions that leave one out, in closed form.
        search = linear_model.RidgeCV(
            RIDGE_PENALTIES, scoring="neg_mean_squared_error", store_cv_results=True
        ).fit(roots, logs / scale)
        settings = float(search.alpha_)
        chosen = list(RIDGE_PENALTIES).index(settings)
        left_out = np.exp(scale * search.cv_results_[..., chosen])
    model = linear_model.Ridge(settings).fit(roots, logs)

    def predict(mixtures: np.ndarray) -> np.ndarray:
        return np.exp(model.predict(np.sqrt(mixtures)).reshape(len(mixtures), -1))

    return FittedRegressor(predict, settings, left_out)


def fit_process(weights: Weights, losses: Losses, settings: Any = None) -> FittedRegressor:
    """Return a Gaussian process of log losses over the cube roots of the weights.

    The kernel is a constant, a Gaussian of one length scale, and noise. The bounds keep it smooth
    with few proxies. Cube roots, unlike the ridge's square roots: on RegMix's 1M proxies the
    leave-one-out error over all losses, relative to their variance, is 0.067 with 128 of them, and
    0.117 with square roots.

    Args:
      settings: (kernel, centre, scale) with targets = (log losses - centre) / scale; None chooses
        the kernel by the marginal likelihood of all targets together.
    Raises: UserError without scikit-learn.
    """
    gaussian_process = studies_library("sklearn.gaussian_process")
    kernels = gaussian_process.kernels
    roots, logs = np.cbrt(weights), np.log(losses)
    chosen = settings is None
    if chosen:
        smooth = kernels.ConstantKernel(1.0, (0.01, 100)) * kernels.RBF(2.0, (1, 10))
        noise = kernels.WhiteKernel(0.1, (0.01, 1))
        kernel = kernels.ConstantKernel(1.0, "fixed") + smooth + noise
        settings = (kernel, logs.mean(0), logs.std(0))
    kernel, centre, scale = settings
    optimizer = "fmin_l_bfgs_b" if chosen else None
    model = gaussian_process.GaussianProcessRegressor(kernel, optimizer=optimizer)
    targets = (logs - centre) / scale
    with warnings.catch_warnings():
        # scikit-learn warns where a setting ends at its bound, which is what bounds are for.
        warnings.simplefilter("ignore")
        model.fit(roots, targets)
    left_out = None
    if chosen:
        settings = (model.kernel_, centre, scale)
        # Rasmussen and Williams 2006, equation 5.12.
        inverse = np.linalg.inv(model.kernel_(roots) + model.alpha * np.eye(len(roots)))
        residuals = inverse @ targets / np.diag(inverse)[:, None]
        left_out = np.exp(centre + scale * (targets - residuals))

    def predict(mixtures: np.ndarray) -> np.ndarray:
        means = model.predict(np.cbrt(mixtures)).reshape(len(mixtures), -1)
        return np.exp(centre + scale * means)

    return FittedRegressor(predict, settings, left_out)


def fit_law(weights: Weights, losses: Losses, settings: Any = None) -> FittedRegressor:
    """Return the exponential mixing law L = c + exp(k + t.w), fitted to each target.

    Adding a number to all of t and taking it from k changes nothing, because weights sum to 1; the
    penalty chooses the t whose mean is 0.

    Args:
      settings: (penalty, parameters [targets, 2 + domains] to start from, or None for LAW_STARTS);
        without settings the penalty is chosen by leave-one-out over LAW_PENALTIES.
    Returns: `parameters` [targets, 2 + domains] are c, k and t of each target.
    Source: Ye et al. 2024 (Data Mixing Laws), with a Huber loss.
    Raises: UserError without scipy or scikit-learn.
    """
    if settings is not None:
        parameters = _law_parameters(weights, losses, *settings)
        return FittedRegressor(_law_predictor(parameters), settings, None, parameters)
    scale = losses.std(0)
    best = None
    for penalty in LAW_PENALTIES:
        parameters = _law_parameters(weights, losses, penalty, None)
        left_out = _law_left_out(weights, losses, penalty, parameters)
        error = (((left_out - losses) / scale) ** 2).mean()
        if best is None or error < best[0]:
            best = (error, penalty, parameters, left_out)
    _, penalty, parameters, left_out = best
    predict = _law_predictor(parameters)
    return FittedRegressor(predict, (penalty, parameters), left_out, parameters)


def _law_left_out(
    weights: np.ndarray, losses: np.ndarray, penalty: float, parameters: np.ndarray
) -> np.ndarray:
    """Return leave-one-out predictions [n, targets]: n searches, from the parameters of all."""
    left_out = np.empty_like(losses)
    for number in range(len(weights)):
        others = np.arange(len(weights)) != number
        refitted = _law_parameters(weights[others], losses[others], penalty, parameters)
        left_out[number] = _law_predictor(refitted)(weights[number : number + 1])[0]
    return left_out


def _law_predictor(parameters: np.ndarray) -> Predict:
    constants, offsets, slopes = parameters[:, 0], parameters[:, 1], parameters[:, 2:]

    def predict(mixtures: np.ndarray) -> np.ndarray:
        exponents = np.minimum(offsets + mixtures @ slopes.T, HIGHEST_EXPONENT)
        return constants + np.exp(exponents)

    return predict


def _law_parameters(
    weights: np.ndarray, losses: np.ndarray, penalty: float, starts: np.ndarray | None
) -> np.ndarray:
    """Return c, k and t of each target [targets, 2 + domains].

    Args:
      starts: parameters [targets, 2 + domains] to start from; None: LAW_STARTS.
    """
    fitted = []
    for target, values in enumerate(losses.T):
        if starts is None:
            candidates = _law_starts(weights, values, penalty)
        else:
            candidates = [starts[target]]
        fitted.append(_law_search(weights, values, penalty, candidates))
    return np.stack(fitted)


def _law_starts(weights: np.ndarray, values: np.ndarray, penalty: float) -> list[np.ndarray]:
    """Return starts of the search: with c given, log(L - c) is linear in the weights."""
    ridge = studies_library("sklearn.linear_model").Ridge(penalty)
    starts = []
    for share in LAW_STARTS:
        constant = share * values.min()
        ridge.fit(weights, np.log(values - constant))
        starts.append(np.concatenate([[constant, ridge.intercept_], ridge.coef_]))
    return starts


def _law_search(
    weights: np.ndarray, values: np.ndarray, penalty: float, starts: list[np.ndarray]
) -> np.ndarray:
    """Return the best c, k and t [2 + domains] that Levenberg and Marquardt's method finds.

    Minimises the Huber loss of the residuals, in standard deviations of the values, plus penalty *
    |t|^2 / 2. The search moves c on the logit scale between 0 and the lowest value, with a weak
    pull to the middle, since c is free where all of t is near 0.
    """
    optimize, special = studies_library("scipy.optimize"), studies_library("scipy.special")
    # A few proxies may have the same loss.
    lowest, scale = values.min(), values.std() or 1.0
    root = np.sqrt(penalty)
    pull = 0.03
    domains = weights.shape[1]

    def law(point: np.ndarray) -> tuple[float, np.ndarray]:
        exponents = np.minimum(point[1] + weights @ point[2:], HIGHEST_EXPONENT)
        return special.expit(point[0]), np.exp(exponents)

    # Rows: the proxies, then the penalty on each of t, then the pull. Half their squares' sum is
    # the objective, so a proxy's entry is the root of twice its Huber loss, with its sign.
    def residuals(point: np.ndarray) -> np.ndarray:
        share, rise = law(point)
        errors = (lowest * share + rise - values) / scale
        rooted = np.sign(errors) * np.sqrt(2 * special.huber(LAW_HUBER, errors))
        return np.concatenate([rooted, root * point[2:], [pull * point[0]]])

    def derivatives(point: np.ndarray) -> np.ndarray:
        share, rise = law(point)
        errors = np.abs(lowest * share + rise - values) / scale
        inner = errors <= LAW_HUBER
        rooted = np.sqrt(2 * special.huber(LAW_HUBER, errors))
        slope = np.where(inner, 1, LAW_HUBER / np.maximum(rooted, LAW_HUBER)) / scale
        matrix = np.zeros((len(values) + domains + 1, domains + 2))
        matrix[: len(values), 0] = slope * lowest * share * (1 - share)
        matrix[: len(values), 1] = slope * rise
        matrix[: len(values), 2:] = (slope * rise)[:, None] * weights
        matrix[len(values) : -1, 2:] = root * np.eye(domains)
        matrix[-1, 0] = pull
        return matrix

    best = None
    for start in starts:
        # Of other proxies the constant may lie at or above the lowest value here.
        share = np.clip(start[0] / lowest, 1e-6, 1 - 1e-6)
        point = np.concatenate([[special.logit(share)], start[1:]])
        found = optimize.least_squares(
            residuals,
            point,
            derivatives,
            method="lm",
            ftol=LAW_TOLERANCE,
            xtol=LAW_TOLERANCE,
            max_nfev=300,
        )
        if best is None or found.cost < best.cost:
            best = found
    constant = lowest * special.expit(best.x[0])
    return np.concatenate([[constant], best.x[1:]])


def studies_library(name: str) -> Any:
    """Return a module of scikit-learn or scipy. Raises: UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(name.partition(".")[0], "scipy")
        raise UserError(
            f"the mixture study needs {package}; install it with: pip install -e '.[studies]'."
        ) from error


# Each regressor by the name that results print.
REGRESSORS = {"ridge": fit_ridge, "process": fit_process, "law": fit_law}
