"""From config.model to an Architecture: the pattern of blocks, and shared keys and values."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slmjax.config import ModelConfig
from slmjax.errors import UserError, nearest
from slmjax.models.architecture import Architecture, Block
from slmjax.models.declare import DECAYING_GROUPS, DECLARED_GROUPS, GROUPS
from slmjax.models.mixers import CHANNELS, MIXERS, mixer_of, options_of
from slmjax.models.rope_scaling import parse_rope_scaling

# The element of a pattern that divides it into parts, see `parts`.
BAR = "|"
PER_GROUP = {"init", "lr", "decay"}  # the multipliers that a group of weights can have
FLOAT = r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"

Stack = tuple[tuple[tuple[Block, ...], int], ...]  # (blocks, repeats) of each part


def from_config(model: ModelConfig, vocab_size: int, **resolved: Any) -> Architecture:
    """Return the architecture that a config describes.

    Args:
      vocab_size: rows of the embedding.
      resolved: fields of Architecture that depend on devices (compute, attention, unroll, ...).
    Raises: UserError for a block that does not parse, a pattern that does not divide the layers,
      and sharing that does not fit them.
    """
    # Fields that both classes have are copied, except for three that the caller decides.
    copied = {field.name for field in dataclasses.fields(Architecture)}
    copied &= {field.name for field in dataclasses.fields(ModelConfig)}
    copied -= {"vocab_size", "attention", "unroll"}
    fields = {name: getattr(model, name) for name in copied}
    fields["init_scales"] = _init_scales(model.multipliers)
    fields["stack"] = _stack(model.pattern, model.layers)
    parse_rope_scaling(model.rope_scaling)  # only to refuse what does not parse
    arch = Architecture(vocab_size=vocab_size, **(fields | resolved))
    # Mixers say which keys they lend, and are made from an architecture: so sharing comes second.
    arch = dataclasses.replace(arch, stack=_shared(arch, model.share_kv))
    _check_lending(arch)
    return arch


def parse_block(text: str) -> Block:
    """Return the block of a text "mixer[+channel] [option=value ...]".

    A mixer or channel with a colon is an import path, "module:Class". The options are the fields of
    the two classes.
    Raises: UserError naming what is unknown.
    """
    if not isinstance(text, str):
        raise UserError(f"config.model.pattern: {text!r} is not a block, such as 'attention'.")
    if BAR in text:
        fault = "holds a bar, which is an element of its own"
        raise UserError(f"config.model.pattern: '{text}' {fault}, as in 'attention', '|', 'gdn'.")
    # An empty text names the mixer "", which is refused below.
    names, *words = text.split() or [""]
    mixer, plus, channel = names.partition("+")
    if not plus:
        channel = "mlp"
    _check_name(mixer, tuple(MIXERS), "token mixer", text)
    _check_name(channel, (*CHANNELS, "none"), "channel mixer", text)
    allowed = options_of(mixer, channel)
    options: dict[str, Any] = {}
    for word in words:
        name, value = _option(word, text, allowed)
        if name in options:
            raise UserError(f"config.model.pattern: '{text}' gives the option {name} twice.")
        options[name] = value
    return Block(mixer, channel, tuple(sorted(options.items())))


def share_keys(
    arch: Architecture,
    pattern: tuple[Block, ...],
    repeats: int,
    share: int,
) -> tuple[tuple[Block, ...], int]:
    """Return (pattern, repeats) of the same layers with keys and values shared.

    Successive attention blocks of one kind (the same rope and window) form groups of `share`. The
    first of a group lends its keys and values to the others. A group must lie in one repeat, so the
    pattern may become several times as long, and its repeats fewer.
    Raises: UserError if the attention layers do not divide into such groups.
    Source: Brandon et al. 2024 (cross-layer attention).
    """
    # Each block's kind: the names of the keys that it lends; () for a block without keys.
    kinds = []
    for block in pattern:
        kind = ()
        if block.mixer == "attention":
            kind = mixer_of(arch, block).lends()
        kinds.append(kind)
    counts = {kind: kinds.count(kind) for kind in kinds if kind}
    # How many repeats must become one, to hold whole groups of every kind.
    needed = [share // math.gcd(share, count) for count in counts.values()]
    joined = math.lcm(*needed)
    if repeats % joined:
        sharers = ", ".join(str(count * repeats) for count in counts.values())
        layers = f"the {sharers} attention layers of one kind in one part of the pattern"
        raise UserError(f"config.model.share_kv is {share}, which does not divide {layers}.")
    blocks = []
    blocks_before = dict.fromkeys(counts, 0)  # of each kind
    for block, kind in zip(pattern * joined, kinds * joined):
        if kind:
            is_first_of_group = blocks_before[kind] % share == 0
            if not is_first_of_group:
                options = {**dict(block.options), "borrows": True}
                ordered = tuple(sorted(options.items()))
                block = dataclasses.replace(block, options=ordered)
            blocks_before[kind] += 1
        blocks.append(block)
    return tuple(blocks), repeats // joined


def parts(pattern: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Return the three parts of a pattern: once at the start, repeated, once at the end.

    Bars divide them. Without bars everything repeats; with one, all that is behind it.
    Raises: UserError for an empty pattern, more than two bars, or nothing that repeats.
    """
    if not pattern:
        expected = "expected at least one block, for example attention"
        raise UserError(f"config.model.pattern is empty; {expected}.")
    bars = [index for index, element in enumerate(pattern) if element == BAR]
    if len(bars) > 2:
        expected = "expected at most two: start | repeated | end"
        raise UserError(f"config.model.pattern has {len(bars)} bars; {expected}.")
    # A missing bar lies just outside of the pattern.
    first_bar, last_bar = -1, len(pattern)
    if bars:
        first_bar = bars[0]
    if len(bars) == 2:
        last_bar = bars[1]
    start = pattern[: max(first_bar, 0)]
    repeated = pattern[first_bar + 1 : last_bar]
    end = pattern[last_bar + 1 :]
    if not repeated:
        place = "between its bars" if len(bars) == 2 else "behind its bar"
        expected = "expected what repeats, as in 'attention', '|', 'gdn'"
        raise UserError(f"config.model.pattern has nothing {place}; {expected}.")
    return start, repeated, end


def _check_name(
    name: str,
    known: tuple[str, ...],
    role: str,
    text: str,
) -> None:
    """Raise UserError for a mixer that is neither known nor an import path.

    Args:
      role, text: what the mixer is for and the text of its block, for the message.
    """
    if name in known or ":" in name:
        return
    fault = f"'{text}' names the {role} '{name}'; there is {', '.join(known)}"
    raise UserError(f"config.model.pattern: {fault}.{nearest(name, known)}")


def _option(word: str, text: str, allowed: dict[str, type]) -> tuple[str, Any]:
    """Return (name, value) of a word "name=value" in a block's text.

    Args:
      allowed: {option: type of its value}.
    Raises: UserError for an unknown option, or a value of another type.
    """
    name, _, value = word.partition("=")
    subject = f"config.model.pattern: '{word}' in '{text}'"
    if name not in allowed:
        expected = "an option: there are none"
        if allowed:
            expected = f"one of the options {', '.join(allowed)}"
        raise UserError(f"{subject} is not {expected}.{nearest(name, allowed)}")
    value_type = allowed[name]
    if value_type is bool:
        if value not in ("True", "False"):
            raise UserError(f"{subject} must be True or False.")
        return name, value == "True"
    if value_type is int and not value.isdecimal():
        raise UserError(f"{subject} must be a whole number, not negative.")
    if value_type is float and not re.fullmatch(FLOAT, value):
        raise UserError(f"{subject} must be a number.")
    return name, value_type(value)


def _check_lending(arch: Architecture) -> None:
    """Raise UserError for a block that borrows what no block before it lends."""
    across: set[str] = set()
    for block in arch.blocks:
        # Only the names count, not the shapes: so one row of one token.
        across.update(mixer_of(arch, block).lends_across(1, 1))
    for pattern, _ in arch.stack:
        # A part starts anew: only what is lent across repeats is there before its first block.
        lent = set(across)
        for block in pattern:
            mixer = mixer_of(arch, block)
            if not set(mixer.borrowed()) <= lent:
                raise UserError(
                    "config.model.pattern: a block with borrows=True needs one before it, in the "
                    "same part of the pattern, that has keys and values, and the same rope and "
                    "window."
                )
            lent |= set(mixer.lends())


def _shared(arch: Architecture, share: int) -> Stack:
    """Return the stack after `share_keys` in each part; `share` is config.model.share_kv."""
    if share == 1:
        return arch.stack
    field = "config.model.share_kv"
    if not any(block.mixer == "attention" for block in arch.blocks):
        raise UserError(f"{field} is {share}, but no block of the pattern is attention.")
    if any(mixer_of(arch, block).borrowed() for block in arch.blocks):
        fault = "the pattern says borrows=True too"
        raise UserError(f"{field} says which layers share keys and values; {fault}.")
    stack = [share_keys(arch, pattern, repeats, share) for pattern, repeats in arch.stack]
    return tuple(stack)


def _stack(pattern: Sequence[str], layers: int) -> Stack:
    """Return (blocks, repeats) of each part of a pattern that has blocks.

    Raises: UserError for a pattern that does not parse or does not divide the layers.
    """
    blocks = [tuple(map(parse_block, part)) for part in parts(pattern)]
    start, repeated, end = blocks
    unrepeated = len(start) + len(end)
    # All other layers are whole repeats of the middle part.
    repeats, remainder = divmod(layers - unrepeated, len(repeated))
    if remainder or repeats < 1:
        # The nearest numbers that fit, with one repeat at least.
        fewer = unrepeated + max(1, repeats) * len(repeated)
        more = unrepeated + max(1, repeats + 1) * len(repeated)
        nearest_layers = sorted({fewer, more})
        others = f" without the {unrepeated} outside of the bars" if unrepeated else ""
        fault = f"which{others} the pattern of {len(repeated)} does not divide"
        raise UserError(f"config.model.layers is {layers}, {fault}; nearest: {nearest_layers}.")
    stack = []
    for part, times in ((start, 1), (repeated, repeats), (end, 1)):
        if part:
            stack.append((part, times))
    return tuple(stack)


def _init_scales(multipliers: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return (group, factor on its initial values) of each group that has one, sorted.

    Raises: UserError for a group that does not exist, and for a multiplier that is not a number or
      that nothing in its group reads.
    """
    scales = {}
    for group, factors in multipliers.items():
        if group not in GROUPS:
            known = ", ".join(sorted(GROUPS))
            fault = f"names '{group}'; the groups are {known}"
            raise UserError(f"config.model.multipliers {fault}.{nearest(group, GROUPS)}")
        # The optimizer reads lr and decay; they are checked here, together with init.
        valid = isinstance(factors, dict) and set(factors) <= PER_GROUP
        if not valid or not all(map(_is_number, factors.values())):
            fault = f"is {factors!r}; it can hold init, lr and decay as numbers"
            example = "such as {'lr': 0.5}"
            raise UserError(f"config.model.multipliers.{group} {fault}, {example}.")
        _check_effect(group, factors)
        if "init" in factors:
            scales[group] = float(factors["init"])
    return tuple(sorted(scales.items()))


def _check_effect(group: str, factors: Mapping[str, float]) -> None:
    """Raise UserError for a multiplier that would have no effect in its group."""
    # A parameter without a declaration has an initialiser of its own, which sees no multiplier.
    readers = {"init": DECLARED_GROUPS, "decay": DECAYING_GROUPS}
    reasons = {
        "init": "its initial values are your own code's",
        "decay": "its parameters have no weight decay",
    }
    for name, groups in readers.items():
        # A factor of 1 asks for nothing.
        if group not in groups and factors.get(name, 1) != 1:
            raise UserError(
                f"config.model.multipliers.{group} sets {name}, which has no effect: "
                f"{reasons[name]}. The groups with {name} are {', '.join(groups)}."
            )


def _is_number(value: Any) -> bool:
    # isinstance would take True for a number.
    return type(value) in (int, float) and math.isfinite(value)
