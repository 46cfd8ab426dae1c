"""The rule by which learning rates, initial scales and weight decay follow a model's size.

It serves --params and the studies. What it changes are factors on initial values and learning
rates: the forward pass stays as it is, and so do exports.
"""

from collections.abc import Collection
from typing import Any

from slmjax.config import ModelConfig, TrainConfig
from slmjax.models.declare import DECAYING_GROUPS, PART_OF
from slmjax.train.optimizer import group_multiplier

# The rate of hidden matrices falls as width to the minus this power; `transfer` derives both.
WIDTH_POWER = {"adamw": 1.0, "muon": 0.5}


def transfer(base: ModelConfig, target: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """Return the fields that the target needs to train at the base's learning rate and decay.

    They are model.multipliers and train.decay_lr. With w the ratio of widths and d that of layers,
    target over base, and everything else equal:

    | group      | initial scale | rate, AdamW     | rate, Muon            |
    |------------|---------------|-----------------|-----------------------|
    | embedding  | 1             | 1               | as AdamW              |
    | matrix     | 1             | 1 / (w sqrt(d)) | 1 / (sqrt(w) sqrt(d)) |
    | residual   | 1             | 1 / (w d)       | 1 / (sqrt(w) d)       |
    | vector     | 1             | 1 / sqrt(d)     | as AdamW              |
    | final_norm | 1 / w         | 1 / w           | as AdamW              |

    Other groups keep their values. The derivations:

    Width. A change of a hidden matrix must change its outputs as much at any width, so its
    spectral norm must stay sqrt(outputs / inputs) (Yang, Simon and Bernstein 2023, condition 1),
    which does not depend on w. AdamW's entries have one size, and add up along the activations that
    made the gradient: the norm grows as w. All singular values of Muon's update are equal. Scaled
    to a root mean square of 0.2 (Liu et al. 2025) it has the norm 0.2 sqrt(max(inputs, outputs)),
    which grows as sqrt(w). The initial deviation 1 / sqrt(fan in) is already right.

    Output. The embedding is also the head. As a look-up its rate does not depend on the width, as
    the head its change adds up over w times as many channels. A factor 1 / w on the logits settles
    both (Yang et al. 2022, appendix B.1). It lies in the initial gain of the final norm, whose rate
    has the same factor. An untied head is treated in the same way.

    Depth. Blocks write 1 / sqrt(d) each, which their initial values do already (`residual_scale`),
    so that independent writes add up to the same stream. Changes agree with each other and add up d
    times: each block may change what it writes by 1 / d. The matrix that writes has 1 / d; the
    matrices and gains before it reach the stream through its 1 / sqrt(d), and have 1 / sqrt(d)
    themselves (Bordelon et al. 2023; Yang et al. 2023, Tensor Programs VI). CompleteP (Dey et al.
    2025) takes writes of 1 / d and rates without sqrt(d). It assumes an embedding as large as the
    stream; ours starts at 0.02, and the coordinate checks are not flat with it.

    Decay. A step shrinks weights by weight_decay times decay_lr, the base's rate, at any size and
    any train.lr (Loshchilov and Hutter 2019; Wortsman et al. 2023; Wang and Aitchison 2024).

    Not in the rule: the batch, the number of steps, the head size (attention's logits keep
    1 / sqrt(head size)), and groups whose fan-in does not follow the width. In recurrent mixers the
    matrices that make gates belong to `matrix`, and have Muon's factor though AdamW updates them.

    Args:
      base: the model at which train.lr was chosen. Its own multipliers are carried over.
      target: the same model in another shape.
      train: the base's.
    """
    width = target.width / base.width
    depth = target.layers / base.layers
    hidden = width ** -WIDTH_POWER[train.optimizer]
    rates = {
        "matrix": hidden * depth**-0.5,
        "residual": hidden / depth,
        "vector": depth**-0.5,
        "final_norm": 1 / width,
    }
    decay_lr = train.decay_lr or train.lr

    multipliers = {group: dict(values) for group, values in base.multipliers.items()}
    for group in ("head", *rates):
        factors = {"lr": group_multiplier(base.multipliers, group, "lr")}
        if group in DECAYING_GROUPS:
            factors["decay"] = group_multiplier(base.multipliers, group, "decay")
            if not train.decay_lr:
                # Until now its own rate was part of its decay.
                factors["decay"] *= factors["lr"]
        factors["init"] = _initial_scale(base, group)
        if group == "final_norm":
            factors["init"] /= width
        factors["lr"] *= rates.get(group, 1.0)
        multipliers[group] = factors
    return {"model.multipliers": _without_ones(multipliers), "train.decay_lr": decay_lr}


def transfer_lines(
    base: ModelConfig, target: ModelConfig, train: TrainConfig, given: Collection[str] = ()
) -> tuple[str, ...]:
    """Return what the rule set and why, one line for each group and for the decay.

    A line's first word is what it is about.

    Args:
      base: the model at which the rate was chosen.
      target: with its final multipliers.
      train: the target's, final too.
      given: the fields that the user has set and the rule has left alone.
    """
    optimizer = {"adamw": "AdamW", "muon": "Muon"}[train.optimizer]
    root = " root of the" if train.optimizer == "muon" else ""
    whys = {
        "embedding": "a look-up, at any width as it was",
        "matrix": f"{optimizer}, over the{root} ratio of widths and the root of that of layers",
        "residual": f"{optimizer}, over the{root} ratio of widths and the ratio of layers",
        "vector": "over the root of the ratio of layers",
        "final_norm": "over the ratio of widths, as logits sum over the width",
    }
    whole = "model.multipliers"
    lines = [
        f"transfer from width {base.width} and {base.layers} layers to width {target.width} and "
        f"{target.layers} layers"
    ]
    for group, why in whys.items():
        # All multipliers may be given, those of the group, or one of them.
        if any(name == whole or name.startswith(f"{whole}.{group}") for name in given):
            why = "from the command line, which wins over the rule"
        rate = train.lr * group_multiplier(target.multipliers, group, "lr")
        scale = _initial_scale(target, group)
        lines.append(f"{group} rate {rate:.3g}, initial scale x {scale:.3g}: {why}")
    decay = train.weight_decay * (train.decay_lr or train.lr)
    why = "weight_decay times decay_lr, whatever train.lr is"
    if "train.decay_lr" in given:
        why = "from the command line, which wins over the rule"
    lines.append(f"decay {decay:.3g} a step at the peak: {why}")
    return tuple(lines)


def _without_ones(multipliers: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the multipliers that change something: not 1, or other than those of the whole."""
    kept: dict[str, dict[str, float]] = {}
    for group, factors in multipliers.items():
        whole = multipliers.get(PART_OF.get(group), {})
        needed = {n: value for n, value in factors.items() if value != 1 or whole.get(n, 1) != 1}
        if needed:
            kept[group] = needed
    return kept


def _initial_scale(model: ModelConfig, group: str) -> float:
    """Return the factor on a group's initial values."""
    own = model.multipliers.get(group, {})
    # The gain of the final norm has never followed the multiplier of vectors.
    whole = model.multipliers.get(PART_OF.get(group), {}) if group == "residual" else {}
    return own.get("init", whole.get("init", 1.0))
