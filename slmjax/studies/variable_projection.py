"""Sums of powers fitted to losses: a search over the exponents, and linear algebra for the rest.

With given exponents the law E + A / N^a + B / D^b is linear in E, A and B. So only the exponents
are searched (variable projection: Golub & Pereyra 1973; for scaling laws vpnls, 2026). Residuals
are relative, law / loss - 1. They equal residuals of log loss up to half their square.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize

# Smallest and largest exponent that is tried. Published ones are .05 to .8; the smallest is almost
# a logarithm of the size, the largest almost a step.
EXPONENTS = (0.01, 4.0)
# Points of the first grid by number of exponents, on each axis.
GRID = {1: 41, 2: 31}
# One exponent: each further grid lies between the neighbours of the best point.
ZOOM_POINTS = 13
ZOOMS = 5
# Relative precision of two exponents.
PRECISION = 1e-7

Objective = Callable[[Float[np.ndarray, "points exponents"]], Float[np.ndarray, "points"]]


@dataclasses.dataclass(frozen=True)
class Powers:
    """Losses of runs, to be fitted by c0 + c1 / x1^e1 + ... with no negative coefficient."""

    # One column for each power: sizes in any unit near 1, so that the columns differ in direction.
    sizes: Float[np.ndarray, "runs exponents"]
    losses: Float[np.ndarray, "runs"]


class _Face(NamedTuple):
    """The least squares of some columns, with all other coefficients 0, at many exponents."""

    columns: tuple[int, ...]
    coefficients: Float[np.ndarray, "points columns"]
    squares: Float[np.ndarray, "points"]
    inverse: Float[np.ndarray, "points columns columns"]  # of R in the QR decomposition


def fit_powers(
    problem: Powers,
) -> tuple[Float[np.ndarray, "exponents"], Float[np.ndarray, "columns"], float]:
    """Return the exponents, the coefficients c0, c1, ... and the sum of squared residuals."""

    def squares(exponents: np.ndarray) -> np.ndarray:
        return _least_squares(problem, exponents)[0]

    exponents = lowest(squares, problem.sizes.shape[1])
    sums, coefficients = _least_squares(problem, exponents[None])
    return exponents, coefficients[0], float(sums[0])


def _least_squares(
    problem: Powers, exponents: Float[np.ndarray, "points exponents"]
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points columns"]]:
    """Return the least sums of squares without negative coefficients, and the coefficients."""
    best = np.full(len(exponents), np.inf)
    coefficients = np.zeros((len(exponents), 1 + exponents.shape[1]))
    for face in _faces(problem, exponents):
        better = (face.coefficients >= 0).all(1) & (face.squares < best)
        best[better] = face.squares[better]
        coefficients[better] = 0
        coefficients[np.ix_(better, face.columns)] = face.coefficients[better]
    return best, coefficients


def extreme_values(
    problem: Powers,
    target: Float[np.ndarray, "exponents"],
    exponents: Float[np.ndarray, "points exponents"],
    allowed: float,
    *,
    sign: int,
    one_run: bool,
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """Return the extreme value at a target with at most `allowed` squared residuals, by exponents.

    The linear part is solved in closed form: the set of allowed coefficients is an ellipsoid, cut
    where a coefficient is 0.

    Args:
      target: its sizes, in the units of `problem.sizes`.
      sign: -1 for the lowest value, 1 for the highest.
      one_run: the value is the loss of one run there, whose squared residual is allowed for, too,
        instead of the law itself.
    Returns: the values, infinite where `allowed` cannot be reached; c0 there; the least squares.
    """
    worst = -sign * np.inf
    values = np.full(len(exponents), worst)
    constants = np.zeros(len(exponents))
    least = np.full(len(exponents), np.inf)
    for face in _faces(problem, exponents):
        feasible = (face.coefficients >= 0).all(1)
        least[feasible] = np.minimum(least, face.squares)[feasible]
        row = _basis(target[None], exponents)[:, 0, face.columns]
        # R^-T x: its squared length is the variance of the value, in units of the noise.
        half = (row[:, None] @ face.inverse)[:, 0]
        direction = (face.inverse @ half[:, :, None])[:, :, 0]
        variance = (half**2).sum(1)
        value = (row * face.coefficients).sum(1)
        if one_run:
            total = variance + value**2
        else:
            total = variance
        slack = np.maximum(allowed - face.squares, 0)
        step = sign * np.sqrt(slack / total)
        coefficients = face.coefficients + direction * step[:, None]
        reached = (face.squares <= allowed) & (coefficients >= 0).all(1)
        extreme = value + total * step
        better = reached & (sign * extreme > sign * values)
        values[better] = extreme[better]
        constants[better] = 0
        if 0 in face.columns:
            constants[better] = coefficients[better, 0]
    return values, constants, least


def lowest(
    objective: Objective, exponents: int, start: Float[np.ndarray, "exponents"] | None = None
) -> Float[np.ndarray, "exponents"]:
    """Return the exponents with the lowest objective: the best of a grid, then refined.

    Args:
      exponents: their number, 1 or 2.
      start: tried as well.
    """
    ends = np.log(EXPONENTS)
    axis = np.linspace(*ends, GRID[exponents])
    grid = np.array(list(itertools.product(axis, repeat=exponents)))
    if start is not None:
        grid = np.concatenate([grid, np.log(start)[None]])
    spacing = axis[1] - axis[0]

    def of_logarithms(logarithms: np.ndarray) -> np.ndarray:
        return objective(np.exp(np.clip(logarithms, *ends)))

    best = grid[np.argmin(of_logarithms(grid))]
    if exponents == 1:
        for _ in range(ZOOMS):
            grid = best + np.linspace(-spacing, spacing, ZOOM_POINTS)[:, None]
            best = grid[np.argmin(of_logarithms(grid))]
            spacing /= (ZOOM_POINTS - 1) / 2
    else:
        # A simplex as large as a cell of the grid.
        simplex = best + spacing * np.array([[0, 0], [1, -0.5], [-0.5, 1]])
        options = {
            "xatol": PRECISION,
            "fatol": 1e-14,
            "maxfev": 600,
            "initial_simplex": np.clip(simplex, *ends),
        }
        result = optimize.minimize(
            lambda point: of_logarithms(point[None])[0], best, method="Nelder-Mead", options=options
        )
        best = result.x
    return np.exp(np.clip(best, *ends))


def _faces(problem: Powers, exponents: Float[np.ndarray, "points exponents"]) -> Iterator[_Face]:
    """Yield the least squares of every set of columns: some optimum without negative coefficients
    is among them."""
    # Relative residuals: each row is divided by its loss, and the losses become 1.
    rows = _basis(problem.sizes, exponents) / problem.losses[:, None]
    numbers = range(rows.shape[2])
    for size in range(1, len(numbers) + 1):
        for columns in itertools.combinations(numbers, size):
            chosen = rows[:, :, columns]
            orthogonal, triangle = np.linalg.qr(chosen)
            inverse = np.linalg.inv(triangle)
            coefficients = (inverse @ orthogonal.sum(1)[:, :, None])[:, :, 0]
            residuals = (chosen * coefficients[:, None]).sum(2) - 1
            yield _Face(columns, coefficients, (residuals**2).sum(1), inverse)


def _basis(
    sizes: Float[np.ndarray, "runs exponents"], exponents: Float[np.ndarray, "points exponents"]
) -> Float[np.ndarray, "points runs columns"]:
    """Return the columns 1, 1 / x1^e1, ..."""
    powers = sizes[None] ** -exponents[:, None]
    return np.concatenate([np.ones((*powers.shape[:2], 1)), powers], 2)
