"""From config.model to an Architecture: the pattern of blocks, and the sharing of keys and values."""

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

BAR = "|"  # an element of the pattern: before the first bar blocks come once, behind the second too


def from_config(model: ModelConfig, vocab_size: int, **resolved: Any) -> Architecture:
    """Return the architecture that a config describes.

    Args:
      vocab_size: rows of the embedding.
      resolved: fields of Architecture that depend on devices (compute, attention, unroll, ...).
    Raises: UserError for a block that does not parse, a pattern that does not divide the layers, and
      sharing that does not fit them.
    """
    names = {field.name for field in dataclasses.fields(Architecture)}
    names &= {field.name for field in dataclasses.fields(ModelConfig)}
    chosen = {name: getattr(model, name) for name in names - {"vocab_size", "attention", "unroll"}}
    chosen["init_scales"] = _init_scales(model.multipliers)
    arch = Architecture(
        vocab_size=vocab_size, stack=_stack(model.pattern, model.layers), **(chosen | resolved)
    )
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
    names, *words = text.split() or [""]
    mixer, _, channel = names.partition("+")
    channel = channel or "mlp"
    for name, known, what in (
        (mixer, MIXERS, "token mixer"),
        (channel, (*CHANNELS, "none"), "channel mixer"),
    ):
        if name not in known and ":" not in name:
            raise UserError(
                f"config.model.pattern: '{text}' names the {what} '{name}'; there is {', '.join(known)}.{nearest(name, known)}"
            )
    allowed = options_of(mixer, channel)
    options = dict(_option(word, text, allowed) for word in words)
    return Block(mixer, channel, tuple(sorted(options.items())))


def _option(word: str, text: str, allowed: dict[str, type]) -> tuple[str, Any]:
    """(name, value) of "name=value" in a block's text."""
    name, _, value = word.partition("=")
    what = f"config.model.pattern: '{word}' in '{text}'"
    if name not in allowed:
        options = (
            f"one of the options {', '.join(allowed)}" if allowed else "an option: there are none"
        )
        raise UserError(f"{what} is not {options}.{nearest(name, allowed)}")
    kind = allowed[name]
    if kind is bool:
        if value not in ("True", "False"):
            raise UserError(f"{what} must be True or False.")
        return name, value == "True"
    if kind is int and not value.isdecimal():
        raise UserError(f"{what} must be a whole number.")
    if kind is float and not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?", value):
        raise UserError(f"{what} must be a number.")
    return name, kind(value)


def share_keys(
    arch: Architecture, pattern: tuple[Block, ...], repeats: int, share: int
) -> tuple[tuple[Block, ...], int]:
    """Return (pattern, repeats) of the same layers with keys and values shared.

    Each attention block lends its keys and values to the next share - 1 of its kind. Layers that
    share lie in one pattern, so the pattern may become several times as long.
    Raises: UserError where the attention layers do not divide into such groups.
    Source: Brandon et al. 2024 (cross-layer attention).
    """
    kinds = [mixer_of(arch, b).lends() if b.mixer == "attention" else () for b in pattern]
    counts = {kind: kinds.count(kind) for kind in kinds if kind}
    longer = math.lcm(*(share // math.gcd(share, count) for count in counts.values()))
    if repeats % longer:
        sharers = ", ".join(str(count * repeats) for count in counts.values())
        layers = f"the {sharers} attention layers of one kind in one part of the pattern"
        raise UserError(f"config.model.share_kv is {share}, which does not divide {layers}.")
    blocks, seen = [], dict.fromkeys(counts, 0)
    for block, kind in zip(pattern * longer, kinds * longer):
        if kind:
            if seen[kind] % share:
                options = {**dict(block.options), "borrows": True}
                block = dataclasses.replace(block, options=tuple(sorted(options.items())))
            seen[kind] += 1
        blocks.append(block)
    return tuple(blocks), repeats // longer


def _check_lending(arch: Architecture) -> None:
    """Raises: UserError for a block that borrows what no block before it lends."""
    across = {name for block in arch.blocks for name in mixer_of(arch, block).lends_across(1, 1)}
    for pattern, _ in arch.stack:
        lent = set(across)
        for block in pattern:
            mixer = mixer_of(arch, block)
            if not set(mixer.borrowed()) <= lent:
                raise UserError(
                    "config.model.pattern: a block with borrows=True needs one before it, in the same "
                    "part of the pattern, that has keys and values, and the same rope and window."
                )
            lent |= set(mixer.lends())


def _shared(arch: Architecture, share: int) -> tuple:
    """The stack with config.model.share_kv applied."""
    if share == 1:
        return arch.stack
    if not any(block.mixer == "attention" for block in arch.blocks):
        raise UserError(
            f"config.model.share_kv is {share}, but no block of the pattern is attention."
        )
    if any(mixer_of(arch, block).borrowed() for block in arch.blocks):
        raise UserError(
            "config.model.share_kv says which layers share keys and values; the pattern says borrows=True too."
        )
    return tuple(share_keys(arch, pattern, repeats, share) for pattern, repeats in arch.stack)


def _stack(pattern: Sequence[str], layers: int) -> tuple[tuple[tuple[Block, ...], int], ...]:
    """Return (blocks, repeats) of each part of a pattern that has blocks.

    Raises: UserError for a pattern that does not parse or does not divide the layers.
    """
    start, repeated, end = (tuple(map(parse_block, part)) for part in parts(pattern))
    once = len(start) + len(end)
    repeats, rest = divmod(layers - once, len(repeated))
    if rest or repeats < 1:
        nearest_layers = sorted({once + max(1, n) * len(repeated) for n in (repeats, repeats + 1)})
        others = f" without the {once} outside of the bars" if once else ""
        fault = f"which{others} the pattern of {len(repeated)} does not divide"
        raise UserError(f"config.model.layers is {layers}, {fault}; nearest: {nearest_layers}.")
    return tuple(part for part in ((start, 1), (repeated, repeats), (end, 1)) if part[0])


def parts(pattern: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Return (what comes once at the start, what repeats, what comes once at the end) of a pattern.

    Raises: UserError for more than two bars, or nothing that repeats.
    """
    if not pattern:
        raise UserError(
            "config.model.pattern is empty; expected at least one block, for example attention."
        )
    bars = [place for place, element in enumerate(pattern) if element == BAR]
    if len(bars) > 2:
        raise UserError(
            f"config.model.pattern has {len(bars)} bars; expected at most two: start | repeated | end."
        )
    first = bars[0] if bars else -1
    last = bars[1] if len(bars) == 2 else len(pattern)
    start, repeated, end = pattern[: max(first, 0)], pattern[first + 1 : last], pattern[last + 1 :]
    if not repeated:
        example = "'attention', '|', 'gdn'"
        raise UserError(
            f"config.model.pattern has nothing behind its first bar; expected what repeats, as in {example}."
        )
    return start, repeated, end


def _init_scales(multipliers: Mapping[str, Any]) -> tuple:
    for name, of in multipliers.items():
        if name not in GROUPS:
            raise UserError(
                f"config.model.multipliers names '{name}'; the groups are {', '.join(sorted(GROUPS))}.{nearest(name, GROUPS)}"
            )
        numbers = isinstance(of, dict) and all(
            type(value) in (int, float) and math.isfinite(value) for value in of.values()
        )
        if not numbers or not set(of) <= {"init", "lr", "decay"}:
            raise UserError(
                f"config.model.multipliers.{name} is {of!r}; it can hold init, lr and decay as numbers, such as {{'lr': 0.5}}."
            )
    return tuple(sorted((name, float(of.get("init", 1.0))) for name, of in multipliers.items()))
