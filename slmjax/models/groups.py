"""Parameter groups: a table over paths, never an array's rank, says how a parameter starts, learns and decays."""

import re
from typing import NamedTuple


class Group(NamedTuple):
    """A group of parameters."""

    name: str  # the key of config.model.multipliers
    pattern: str  # over the parameter's path
    muon: bool  # updated by Muon where train.optimizer is muon, else by AdamW
    decays: bool  # has weight decay
    inputs: int = 0  # how many of the parameter's own leading axes are summed over in the product it takes part in


GROUPS = (
    Group("embedding", r"embedding", muon=False, decays=False),
    Group("head", r"head", muon=False, decays=True),
    Group("matrix", r"stack/.*/mixer/(query|key|value|gate|write|read)", muon=True, decays=True, inputs=1),
    Group("matrix", r"stack/.*/mixer/out", muon=True, decays=True, inputs=2),
    Group("matrix", r"stack/.*/mixer/(erase|step|decay|decay_down|decay_up|gate_down|gate_up)", muon=False, decays=True, inputs=1),
    Group("matrix", r"stack/.*/channel/(gate|up|down)", muon=True, decays=True, inputs=1),
    Group("vector", r"(.*/)?(\w+_)?norm/scale", muon=False, decays=False),
    Group("vector", r"stack/.*/mixer/(decay_log|decay_bias|step_bias|skip|conv_\w+)", muon=False, decays=False),
    Group("own", r"stack/.*/own/.*", muon=False, decays=False),
)


def group_of(path: str) -> Group:
    """The one group whose pattern matches the whole path.

    Raises: KeyError naming the path where none or several match.
    """
    found = [group for group in GROUPS if re.fullmatch(group.pattern, path)]
    if len(found) != 1:
        raise KeyError(f"parameter '{path}' matches {len(found)} groups of models/groups.py; it must match one")
    return found[0]


def in_compute_type(path: str) -> bool:
    """Whether a parameter is cast to the compute type: those of products are; norms, decays and own mixers' stay as they are."""
    return group_of(path).name in ("embedding", "head", "matrix")


def stacked_axes(path: str) -> int:
    """Leading axes of a parameter that only stack layers (batch axes for every update rule)."""
    return 1 if path.startswith("stack/") else 0
