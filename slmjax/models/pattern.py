"""From config.model to an Architecture: the pattern of blocks, and shared keys and values."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slmjax.config import ModelConfig
from slmjax.errors import UserError, nearest
from slmjax.models.architecture import Architecture, Block
from slmjax.models.declare import GROUPS
from slmjax.models.mixers import CHANNELS, MIXERS, mixer_of, options_of

# An element of the pattern: blocks before the first bar come once, those behind the second too.
BAR = "|"
PER_GROUP = {"init", "lr", "decay"}  # the multipliers that a group can have
FLOAT = r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?"

Stack = tuple[tuple[tuple[Block, ...], int], ...]  # (blocks, repeats) of each part


def from_config(model: ModelConfig, vocab_size: int, **resolved: Any) -> Architecture:
    """Return the architecture that a config describes.

    Args:
      vocab_size: rows of the embedding.
      resolved: fields of Architecture that depend on devices (compute, attention, unroll, ...).
    Raises: UserError for a block that does not parse, a pattern that does not divide the layers,
      and sharing that does not fit them.
    """
    names = {field.name for field in dataclasses.fields(Architecture)}
    # Fields of both classes are copied; `resolved` gives those that depend on devices.
    names &= {field.name for field in dataclasses.fields(ModelConfig)}
    # These three are decided by the caller.
    names -= {"vocab_size", "attention", "unroll"}
    chosen = {name: getattr(model, name) for name in names}
    chosen["init_scales"] = _init_scales(model.multipliers)
    chosen["stack"] = _stack(model.pattern, model.layers)
    arch = Architecture(vocab_size=vocab_size, **(chosen | resolved))
    # Sharing asks the mixers which keys they lend, so that it needs the architecture.
    arch = dataclasses.replace(arch, stack=_shared(arch, model.share_kv))
    _check_lending(arch)
    return arch


def parse_block(text: str) -> Block:
    """Return the block of a text "mixer[+channel] [option=value ...]".

    A mixer or channel with a colon is an import path, "module:Class". The options are the fields of
    its class.
    Raises: UserError naming what is unknown.
    """
    if not isinstance(text, str):
        raise UserError(f"config.model.pattern: {text!r} is not a block, such as 'attention'.")
    if BAR in text:
        fault = "holds a bar, which is an element of its own"
        raise UserError(f"config.model.pattern: '{text}' {fault}, as in 'attention', '|', 'gdn'.")
    # An empty text names the mixer "", which is refused below.
    names, *words = text.split() or [""]
    mixer, _, channel = names.partition("+")
    channel = channel or "mlp"
    _check_name(mixer, tuple(MIXERS), "token mixer", text)
    _check_name(channel, (*CHANNELS, "none"), "channel mixer", text)
    allowed = options_of(mixer, channel)
    options = dict(_option(word, text, allowed) for word in words)
    return Block(mixer, channel, tuple(sorted(options.items())))


def share_keys(
    arch: Architecture,
    pattern: tuple[Block, ...],
    repeats: int,
    share: int,
) -> tuple[tuple[Block, ...], int]:
    """Return (pattern, repeats) of the same layers with keys and values shared.

    Each attention block lends its keys and values to the next share - 1 of its kind. Layers that
    share lie in one pattern, so the pattern may become several times as long.
    Raises: UserError if the attention layers do not divide into such groups.
    Source: Brandon et al. 2024 (cross-layer attention).
    """
    # Of each block, the names of the keys that it lends; () for a block without keys.
    kinds = []
    for block in pattern:
        kind = ()
        if block.mixer == "attention":
            kind = mixer_of(arch, block).lends()
        kinds.append(kind)
    counts = {kind: kinds.count(kind) for kind in kinds if kind}
    # Repeats of the pattern that hold whole groups of every kind.
    needed = [share // math.gcd(share, count) for count in counts.values()]
    longer = math.lcm(*needed)
    if repeats % longer:
        sharers = ", ".join(str(count * repeats) for count in counts.values())
        layers = f"the {sharers} attention layers of one kind in one part of the pattern"
        raise UserError(f"config.model.share_kv is {share}, which does not divide {layers}.")
    blocks, seen = [], dict.fromkeys(counts, 0)
    for block, kind in zip(pattern * longer, kinds * longer):
        if kind:
            # The first of each group lends, the others borrow.
            if seen[kind] % share:
                options = {**dict(block.options), "borrows": True}
                ordered = tuple(sorted(options.items()))
                block = dataclasses.replace(block, options=ordered)
            seen[kind] += 1
        blocks.append(block)
    return tuple(blocks), repeats // longer


def parts(pattern: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Return the three parts of a pattern: once at the start, repeated, once at the end.

    Raises: UserError for more than two bars, or nothing that repeats.
    """
    if not pattern:
        expected = "expected at least one block, for example attention"
        raise UserError(f"config.model.pattern is empty; {expected}.")
    bars = [place for place, element in enumerate(pattern) if element == BAR]
    if len(bars) > 2:
        expected = "expected at most two: start | repeated | end"
        raise UserError(f"config.model.pattern has {len(bars)} bars; {expected}.")
    # Without bars everything repeats; with one, all that is behind it.
    first, last = -1, len(pattern)
    if bars:
        first = bars[0]
    if len(bars) == 2:
        last = bars[1]
    start = pattern[: max(first, 0)]
    repeated = pattern[first + 1 : last]
    end = pattern[last + 1 :]
    if not repeated:
        expected = "expected what repeats, as in 'attention', '|', 'gdn'"
        raise UserError(f"config.model.pattern has nothing behind its first bar; {expected}.")
    return start, repeated, end


def _check_name(
    name: str,
    known: tuple[str, ...],
    what: str,
    text: str,
) -> None:
    """Raise UserError for a mixer that is neither known nor an import path."""
    if name in known or ":" in name:
        return
    fault = f"'{text}' names the {what} '{name}'; there is {', '.join(known)}"
    raise UserError(f"config.model.pattern: {fault}.{nearest(name, known)}")


def _option(word: str, text: str, allowed: dict[str, type]) -> tuple[str, Any]:
    """Return (name, value) of "name=value" in a block's text."""
    name, _, value = word.partition("=")
    what = f"config.model.pattern: '{word}' in '{text}'"
    if name not in allowed:
        expected = "an option: there are none"
        if allowed:
            expected = f"one of the options {', '.join(allowed)}"
        raise UserError(f"{what} is not {expected}.{nearest(name, allowed)}")
    # The type of the option's default.
    kind = allowed[name]
    if kind is bool:
        if value not in ("True", "False"):
            raise UserError(f"{what} must be True or False.")
        return name, value == "True"
    if kind is int and not value.isdecimal():
        raise UserError(f"{what} must be a whole number.")
    if kind is float and not re.fullmatch(FLOAT, value):
        raise UserError(f"{what} must be a number.")
    return name, kind(value)


def _check_lending(arch: Architecture) -> None:
    """Raise UserError for a block that borrows what no block before it lends."""
    across: set[str] = set()
    for block in arch.blocks:
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
    """Return the stack with config.model.share_kv applied."""
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
    once = len(start) + len(end)
    # All other layers are whole repeats of the middle part.
    repeats, rest = divmod(layers - once, len(repeated))
    if rest or repeats < 1:
        # One repeat at least.
        fewer = once + max(1, repeats) * len(repeated)
        more = once + max(1, repeats + 1) * len(repeated)
        nearest_layers = sorted({fewer, more})
        others = f" without the {once} outside of the bars" if once else ""
        fault = f"which{others} the pattern of {len(repeated)} does not divide"
        raise UserError(f"config.model.layers is {layers}, {fault}; nearest: {nearest_layers}.")
    stack = []
    for part, times in ((start, 1), (repeated, repeats), (end, 1)):
        if part:
            stack.append((part, times))
    return tuple(stack)


def _init_scales(multipliers: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return (group, factor of its initial scale), sorted.

    Raises: UserError for a group that does not exist, or a multiplier that is not a number.
    """
    scales = []
    for group, factors in multipliers.items():
        if group not in GROUPS:
            known = ", ".join(sorted(GROUPS))
            fault = f"names '{group}'; the groups are {known}"
            raise UserError(f"config.model.multipliers {fault}.{nearest(group, GROUPS)}")
        # lr and decay are read by the optimizer, and checked here with init.
        valid = isinstance(factors, dict) and set(factors) <= PER_GROUP
        if not valid or not all(map(_is_number, factors.values())):
            fault = f"is {factors!r}; it can hold init, lr and decay as numbers"
            example = "such as {'lr': 0.5}"
            raise UserError(f"config.model.multipliers.{group} {fault}, {example}.")
        scales.append((group, float(factors.get("init", 1.0))))
    return tuple(sorted(scales))


def _is_number(value: Any) -> bool:
    # isinstance would take True for a number.
    return type(value) in (int, float) and math.isfinite(value)
