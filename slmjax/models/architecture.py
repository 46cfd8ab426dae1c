"""A model's description: frozen and hashable. models/pattern.py makes it from the config."""

import dataclasses
from typing import Any

from slmjax.errors import UserError

# The embedding's rows are a multiple of it: of the lanes of a TPU's matrix unit, or a GPU's tiles.
ROUND_VOCAB = 128


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of a pattern: a token mixer, a channel mixer, and their options.

    mixer, channel: a name in models/mixers.py, or an import path "module:Class". A channel can
      also be "none".
    options: (name, value) of each option that was given, sorted. The options that exist are the
      fields of the mixers' classes.
    """

    mixer: str = "attention"
    channel: str = "mlp"
    options: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes and choices of a language model.

    Fields have the names that they have in the config's groups model and precision.
    """

    vocab_size: int  # V
    width: int  # D
    heads: int  # N, query heads
    kv_heads: int  # K, key/value heads
    head_dim: int  # H
    ff_width: int  # F
    # (blocks, repeats) of each non-empty part of the pattern. A part is one group of parameters.
    stack: tuple[tuple[tuple[Block, ...], int], ...]
    rope_theta: float = 10000.0
    rope_scaling: str = ""  # of layers without a window, see models/rope_scaling.py
    qk_norm: bool = False
    output_gate: bool = False
    tied: bool = True
    share_blocks: int = 1  # times in a row that each block is applied
    norm_eps: float = 1e-6
    compute: str = "float32"  # type of matrix products
    products: str = "compute"  # or "float8", for training's products of projections and MLP
    attention: str = "blockwise"  # kernel, see ops/softmax_attention.py
    recurrence: str = "scan"  # or "triton": how recurrent mixers walk over their chunks
    unroll: bool = True
    remat: str = "none"
    init_scales: tuple[tuple[str, float], ...] = ()  # (group of weights, factor on initial values)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every layer's block, first to last."""
        blocks: tuple[Block, ...] = ()
        for pattern, repeats in self.stack:
            blocks += pattern * repeats
        return blocks

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @property
    def applications(self) -> tuple[Block, ...]:
        """The blocks in the order in which a token passes them.

        Each comes `share_blocks` times in a row.
        """
        return tuple(block for block in self.blocks for _ in range(self.share_blocks))


def vocab_rows(asked: int, tokenizer_size: int) -> int:
    """Return the rows of the embedding: as asked, else the tokenizer's size rounded up to 128s.

    Args:
      asked: config.model.vocab_size; 0 leaves the choice to the tokenizer.
      tokenizer_size: number of the tokenizer's tokens.
    Raises: UserError where fewer rows are asked for than there are tokens.
    """
    if asked and asked < tokenizer_size:
        raise UserError(
            f"config.model.vocab_size is {asked}, but the tokenizer has {tokenizer_size} tokens."
        )
    if asked:
        return asked
    tiles = -(-tokenizer_size // ROUND_VOCAB)
    return tiles * ROUND_VOCAB
