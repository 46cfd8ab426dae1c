"""An evaluation's figures on the items that the training text does not hold.

Which these are is written by `python -m slmjax.bench contamination --out=FILE`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError
from slmjax.evals.intervals import Figure, share_of

# Names of tasks whose set has another name in the file.
SET_OF_TASK = {"gsm8k_test": "gsm8k"}
UNCOPIED = "not in training text"


def read_copied(path: str) -> dict[str, Float[np.ndarray, " items"]]:
    """Return {set: the share of each item that one training document holds}; 0 for no copy.

    Raises: UserError for a file that is not there or is none of the bench's.
    """
    place = f"config.evaluate.contamination: '{path}'"
    try:
        content = json.loads(Path(path).expanduser().read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{place} is not there.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read: {error}.") from error
    try:
        sets = content["items"]
        copied = {name: np.array(of["copied"], np.float64) for name, of in sets.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{place} is no file of `python -m slmjax.bench contamination --out=FILE`."
        ) from error
    if not copied:
        raise UserError(f"{place} names no evaluation set.")
    return copied


def uncopied_figure(
    task: str,
    records: Sequence[Mapping[str, Any]],
    copied: Mapping[str, Float[np.ndarray, " items"]],
) -> tuple[Figure | None, str]:
    """Return the share of right answers on items without a copy, and what it leaves out.

    Args:
      task: name of the task's set.
      records: of all its items, see `evaluation_page.write_items`.
      copied: see `read_copied`.
    Returns: (figure, sentence). There is no figure, and the sentence says why, for a set that the
      file does not have, a part of a set, items without a verdict, and where every item is a copy.
    """
    shares = copied.get(SET_OF_TASK.get(task, task))
    if shares is None:
        return None, "the file of config.evaluate.contamination does not have this set"
    if len(shares) != len(records):
        counts = f"the file has {len(shares):,} items, and {len(records):,} were asked"
        return None, f"{counts}: those in the training text are not told apart"
    if "right" not in records[0]:
        return None, "its items have no verdict"
    outside = shares == 0
    count = int((~outside).sum())
    sentence = f"{count:,} of {len(shares):,} items are in the training text"
    if not outside.any():
        return None, sentence
    right = np.array([bool(record["right"]) for record in records])
    return share_of(right[outside]), sentence
