"""What a model is: a frozen, hashable description, made from the config once the devices are known."""

import dataclasses
import re

from ml_collections import ConfigDict

from slmjax.errors import UserError, nearest
from slmjax.models.groups import GROUPS

MIXERS = ("attention",)
CHANNELS = ("mlp",)
OPTIONS = ("rope",)  # a block's own overrides, True or False


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a pattern: a token mixer, a channel mixer, and its overrides."""

    mixer: str = "attention"
    channel: str = "mlp"
    rope: bool = True


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes and choices of a language model; field names are the config's (`model.*`, `precision.*`)."""

    vocab_size: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff_width: int
    stack: tuple[tuple[tuple[Block, ...], int], ...]
    rope_theta: float = 10000.0
    qk_norm: bool = False
    output_gate: bool = False
    tied: bool = True
    norm_eps: float = 1e-6
    params: str = "float32"
    compute: str = "float32"
    reductions: str = "float32"
    products: str = "compute"
    attention: str = "blockwise"
    max_segments: int = 0  # in a row; what the row plan promises
    usual_segments: int = 0  # places kept per row, shared by the rows of a device; more is slower on a GPU
    unroll: bool = True
    remat: str = "none"
    init_scales: tuple[tuple[str, float], ...] = ()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every layer's block, first to last."""
        return tuple(block for pattern, repeats in self.stack for _ in range(repeats) for block in pattern)

    @property
    def layers(self) -> int:
        return len(self.blocks)


def from_config(config: ConfigDict, vocab_size: int, **resolved) -> Architecture:
    """The architecture of a whole config; `resolved` holds what depends on devices (compute, attention, unroll) and on the rows.

    Raises: UserError for a block that does not parse or a pattern that does not divide the layers.
    """
    m = config.model
    names = {f.name for f in dataclasses.fields(Architecture)} & set(m.keys()) - {"stack", "attention", "unroll", "vocab_size"}
    fields = {name: m[name] for name in names}
    fields |= {"params": config.precision.params, "reductions": config.precision.reductions, "stack": _stack(m)}
    fields["init_scales"] = _init_scales(m.multipliers)
    fields |= {"compute": "float32" if config.precision.compute == "auto" else config.precision.compute}
    return Architecture(vocab_size=vocab_size, **(fields | resolved))


def parse_block(text: str) -> Block:
    """A block from "mixer[+channel] [option=value ...]".

    Raises: UserError naming what is unknown.
    """
    kinds, *options = text.split() or [""]
    mixer, _, channel = kinds.partition("+")
    channel = channel or "mlp"
    for name, known, what in ((mixer, MIXERS, "token mixer"), (channel, CHANNELS, "channel mixer")):
        if name not in known:
            raise UserError(f"config.model.pattern: '{text}' names the {what} '{name}'; there is {', '.join(known)}.{nearest(name, known)}")
    values = {}
    for option in options:
        match = re.fullmatch(r"(\w+)=(\w+)", option)
        if not match or match[1] not in OPTIONS:
            raise UserError(f"config.model.pattern: '{option}' in '{text}' is not one of the options {', '.join(OPTIONS)}.")
        if match[2] not in ("True", "False"):
            raise UserError(f"config.model.pattern: '{option}' in '{text}' must be True or False.")
        values[match[1]] = match[2] == "True"
    return Block(mixer, channel, **values)


def _stack(m: ConfigDict) -> tuple:
    if m.stack:
        return tuple(_group(entry) for entry in m.stack)
    pattern = tuple(parse_block(b) for b in m.pattern)
    repeats, rest = divmod(m.layers, len(pattern))
    if rest or not repeats:
        options = [n * len(pattern) for n in (repeats, repeats + 1) if n]
        raise UserError(f"config.model.layers is {m.layers}, which the pattern of {len(pattern)} does not divide; nearest: {options}.")
    return ((pattern, repeats),)


def _group(entry) -> tuple:
    match entry:
        case [[_, *_] as pattern, int(repeats)] if repeats > 0:
            return tuple(parse_block(block) for block in pattern), repeats
    raise UserError(f"config.model.stack: {entry!r} is not (pattern, repeats), such as (('attention', 'attention rope=False'), 4).")


def _init_scales(multipliers: ConfigDict) -> tuple:
    names = {group.name for group in GROUPS}
    for name, of in multipliers.items():
        if name not in names:
            raise UserError(f"config.model.multipliers names '{name}'; the groups are {', '.join(sorted(names))}.{nearest(name, names)}")
        if not isinstance(of, dict | ConfigDict) or not set(of) <= {"init", "lr", "decay"}:
            raise UserError(f"config.model.multipliers.{name} is {of!r}; it can hold init, lr and decay, such as {{'lr': 0.5}}.")
    return tuple(sorted((name, float(of.get("init", 1.0))) for name, of in multipliers.items()))
