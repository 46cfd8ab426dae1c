"""What a model is: a frozen, hashable description, made from the config once the devices are known."""

import dataclasses
import math

from ml_collections import ConfigDict

from slmjax.errors import UserError, nearest
from slmjax.models.groups import GROUPS

OPTIONS = {
    "attention": ("rope", "window", "borrows"),
    "ssm": ("heads", "key_dim", "value_dim"),
    "gla": ("heads", "key_dim", "value_dim"),
    "gdn": ("heads", "key_dim", "value_dim"),
    "kda": ("heads", "key_dim", "value_dim"),
}  # of each token mixer of the library; one that is named by an import path may read any
MIXERS = tuple(OPTIONS)
RECURRENT = tuple(name for name, options in OPTIONS.items() if "heads" in options)
CHANNELS = ("mlp", "none")
TAPS = 4  # of the short convolutions; Dao and Gu 2024, Yang et al. 2024
GLA_RANK = 16  # of the projection that makes GLA's decays; Yang et al. 2023, section 4.4


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a pattern: a token mixer, a channel mixer, and its overrides."""

    mixer: str = "attention"  # or "module:Class", an import path
    channel: str = "mlp"
    rope: bool = True
    window: int = 0  # tokens that attention sees, the query's own among them; 0: all
    borrows: bool = False  # attention over the keys and values of the pattern's last block before it with the same rope and window
    heads: int = 0  # of a recurrent mixer; 0: as many as `recurrent_sizes` says
    key_dim: int = 0
    value_dim: int = 0

    @property
    def kind_of_keys(self) -> tuple[bool, int]:
        """Attention blocks that agree in it can share keys and values."""
        return self.rope, self.window


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
    share_blocks: int = 1  # times in a row that each block is applied
    norm_eps: float = 1e-6
    params: str = "float32"
    compute: str = "float32"
    reductions: str = "float32"
    products: str = "compute"
    attention: str = "blockwise"
    recurrence: str = "scan"  # or "triton": how recurrent mixers walk over their chunks
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

    @property
    def applications(self) -> tuple[Block, ...]:
        """The blocks in the order in which a token passes them, each `share_blocks` times in a row."""
        return tuple(block for block in self.blocks for _ in range(self.share_blocks))


def recurrent_sizes(arch: Architecture, block: Block) -> tuple[int, int, int]:
    """(heads H, key channels K, value channels V of a head) of a recurrent mixer.

    By default the heads are attention's, so that mixers can be exchanged; Mamba-2 is twice as wide as the model and has a state of 128, and
    GLA's keys are half as wide as its values, as in their papers.
    """
    V = block.value_dim or arch.head_dim
    K = block.key_dim or {"ssm": 128, "gla": max(1, V // 2)}.get(block.mixer, arch.head_dim)
    return block.heads or (2 * arch.width // V if block.mixer == "ssm" else arch.heads), K, V


def from_config(config: ConfigDict, vocab_size: int, **resolved) -> Architecture:
    """The architecture of a whole config; `resolved` holds what depends on devices (compute, attention, unroll) and on the rows.

    Raises: UserError for a block that does not parse, a pattern that does not divide the layers, and sharing that does not fit them.
    """
    m = config.model
    names = {f.name for f in dataclasses.fields(Architecture)} & set(m.keys()) - {"stack", "attention", "unroll", "vocab_size"}
    fields = {name: m[name] for name in names}
    fields |= {"params": config.precision.params, "reductions": config.precision.reductions, "stack": _stack(m)}
    fields["init_scales"] = _init_scales(m.multipliers)
    fields |= {"compute": "float32" if config.precision.compute == "auto" else config.precision.compute}
    return Architecture(vocab_size=vocab_size, **(fields | resolved))


def parse_block(text: str) -> Block:
    """A block from "mixer[+channel] [option=value ...]", where a mixer with a colon is an import path, "module:Class".

    Raises: UserError naming what is unknown.
    """
    if not isinstance(text, str):
        raise UserError(f"config.model.pattern: {text!r} is not a block, such as 'attention'.")
    kinds, *options = text.split() or [""]
    mixer, _, channel = kinds.partition("+")
    channel = channel or "mlp"
    for name, known, what in ((mixer, MIXERS, "token mixer"), (channel, CHANNELS, "channel mixer")):
        if name not in known and not (what == "token mixer" and ":" in name):
            raise UserError(f"config.model.pattern: '{text}' names the {what} '{name}'; there is {', '.join(known)}.{nearest(name, known)}")
    values, kinds = {}, {f.name: f.type for f in dataclasses.fields(Block)}
    allowed = OPTIONS.get(mixer, sorted({name for names in OPTIONS.values() for name in names}))
    for option in options:
        name, _, value = option.partition("=")
        if name not in allowed:
            near = nearest(name, allowed)
            raise UserError(f"config.model.pattern: '{option}' in '{text}' is not one of the options {', '.join(allowed)}.{near}")
        if kinds[name] is bool and value not in ("True", "False"):
            raise UserError(f"config.model.pattern: '{option}' in '{text}' must be True or False.")
        if kinds[name] is int and not value.isdecimal():
            raise UserError(f"config.model.pattern: '{option}' in '{text}' must be a whole number.")
        values[name] = value == "True" if kinds[name] is bool else int(value)
    return Block(mixer, channel, **values)


def share_keys(pattern: tuple[Block, ...], repeats: int, share: int) -> tuple[tuple[Block, ...], int]:
    """(pattern, repeats) of the same layers, in which each attention block lends its keys and values to the next share - 1 of its kind.

    Layers that share lie in one pattern, so the pattern may have to become several times as long.
    Raises: UserError where the attention layers do not divide into such groups.
    Source: Brandon et al. 2024 (cross-layer attention).
    """
    counts: dict[tuple, int] = {}
    for block in pattern:
        if block.mixer == "attention":
            counts[block.kind_of_keys] = counts.get(block.kind_of_keys, 0) + 1
    longer = math.lcm(*(share // math.gcd(share, count) for count in counts.values()))
    if repeats % longer:
        sharers = ", ".join(str(count * repeats) for count in counts.values())
        raise UserError(f"config.model.share_kv is {share}, which does not divide the {sharers} attention layers of a kind and group.")
    blocks, seen = [], dict.fromkeys(counts, 0)
    for block in pattern * longer:
        if block.mixer == "attention":
            block = dataclasses.replace(block, borrows=bool(seen[block.kind_of_keys] % share))
            seen[block.kind_of_keys] += 1
        blocks.append(block)
    return tuple(blocks), repeats // longer


def _stack(m: ConfigDict) -> tuple:
    groups = _groups(m)
    for pattern, _ in groups:
        lenders = set()
        for block in pattern:
            if block.borrows and m.share_kv > 1:
                raise UserError("config.model.share_kv says which layers share keys and values; the pattern says borrows=True too.")
            if block.borrows and block.kind_of_keys not in lenders:
                raise UserError(
                    "config.model.pattern: a block with borrows=True needs one before it, in the same pattern, that has keys and values, "
                    "and the same rope and window."
                )
            if block.mixer == "attention":
                lenders.add(block.kind_of_keys)
    if m.share_kv == 1:
        return groups
    if not any(block.mixer == "attention" for pattern, _ in groups for block in pattern):
        raise UserError(f"config.model.share_kv is {m.share_kv}, but no block of the pattern is attention.")
    return tuple(share_keys(pattern, repeats, m.share_kv) for pattern, repeats in groups)


def _groups(m: ConfigDict) -> tuple:
    if m.stack:
        return tuple(_group(entry) for entry in m.stack)
    pattern = tuple(parse_block(b) for b in m.pattern)
    if not pattern:
        raise UserError("config.model.pattern is empty; expected at least one block, for example attention.")
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
    for name, of in multipliers.to_dict().items():
        if name not in names:
            raise UserError(f"config.model.multipliers names '{name}'; the groups are {', '.join(sorted(names))}.{nearest(name, names)}")
        numbers = isinstance(of, dict) and all(type(value) in (int, float) and math.isfinite(value) for value in of.values())
        if not numbers or not set(of) <= {"init", "lr", "decay"}:
            raise UserError(f"config.model.multipliers.{name} is {of!r}; it can hold init, lr and decay as numbers, such as {{'lr': 0.5}}.")
    return tuple(sorted((name, float(of.get("init", 1.0))) for name, of in multipliers.items()))
