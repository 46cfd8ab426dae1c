"""Our decoder as a user would write it in PyTorch.

torch is optional, so the caller imports it late and passes it in; classes are made in functions.
"""

import functools
from typing import Any

from slmjax.models.architecture import Architecture

# Without torch its types are unknown.
Torch = Any
Tensor = Any


def Decoder(torch: Torch, arch: Architecture) -> Any:
    """Return the architecture's decoder as a torch module.

    Its method loss(tokens, targets) takes int64 ids [B,T] and returns the mean nats of a token.

    Args:
      torch: the imported module torch.
    """
    nn = torch.nn
    D = arch.width
    Layer = _layer_class(torch, arch)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(arch.vocab_size, D)
            self.layers = nn.ModuleList([Layer() for _ in range(arch.layers)])
            self.final_norm = nn.RMSNorm(D, eps=arch.norm_eps)
            self.head = nn.Linear(D, arch.vocab_size, bias=False)
            # Norms, which are vectors, keep their initial ones.
            for weight in self.parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=0.02)
            if arch.tied:
                self.head.weight = self.embedding.weight

        def loss(self, tokens, targets):
            x = self.embedding(tokens)  # [B,T,D]
            if x.is_cuda:
                # Autocast would leave the look-up, and so the whole residual stream, in float32.
                x = x.to(torch.bfloat16)
            cos, sin = _rotations(torch, arch, tokens.shape[1], x)
            for layer in self.layers:
                x = layer(x, cos, sin)
            logits = self.head(self.final_norm(x))
            # cross_entropy takes [B*T, V] and [B*T].
            flat_logits = logits.float().view(-1, logits.shape[-1])
            flat_targets = targets.reshape(-1)
            return nn.functional.cross_entropy(flat_logits, flat_targets)

    return Model()


def _layer_class(torch: Torch, arch: Architecture) -> type:
    """Return the class of a layer: attention, then a gated MLP, each with an RMSNorm before it."""
    nn = torch.nn
    attend = nn.functional.scaled_dot_product_attention
    linear = functools.partial(nn.Linear, bias=False)
    D = arch.width
    N = arch.heads
    K = arch.kv_heads
    H = arch.head_dim
    F = arch.ff_width

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer_norm = nn.RMSNorm(D, eps=arch.norm_eps)
            self.channel_norm = nn.RMSNorm(D, eps=arch.norm_eps)
            self.query = linear(D, N * H)
            self.key = linear(D, K * H)
            self.value = linear(D, K * H)
            self.out = linear(N * H, D)
            self.gate = linear(D, F)
            self.up = linear(D, F)
            self.down = linear(F, D)

        def forward(self, x, cos, sin):
            x = x + self.attention(self.mixer_norm(x), cos, sin)
            return x + self.mlp(self.channel_norm(x))

        def attention(self, x, cos, sin):
            B, T, _ = x.shape
            q = self.query(x).view(B, T, N, H)
            k = self.key(x).view(B, T, K, H)
            v = self.value(x).view(B, T, K, H)
            # PyTorch's attention wants heads before time: [B,N,T,H].
            q = _rotate(torch, q.transpose(1, 2), cos, sin)
            k = _rotate(torch, k.transpose(1, 2), cos, sin)
            v = v.transpose(1, 2)
            mixed = attend(q, k, v, is_causal=True, enable_gqa=True)
            # Back to [B,T,N*H].
            mixed = mixed.transpose(1, 2).reshape(B, T, N * H)
            return self.out(mixed)

        def mlp(self, x):
            gate = nn.functional.silu(self.gate(x))
            return self.down(gate * self.up(x))

    return Layer


def _rotations(torch: Torch, arch: Architecture, length: int, like: Tensor) -> tuple:
    """Return (cos, sin) [T,H/2] of the rotary embedding; device and type are those of `like`."""
    # Angles in float32: bfloat16 cannot count positions beyond 256.
    options = {"device": like.device, "dtype": torch.float32}
    half = arch.head_dim // 2
    exponents = torch.arange(half, **options) / half
    frequencies = arch.rope_theta**-exponents
    positions = torch.arange(length, **options)
    angles = positions[:, None] * frequencies
    cos = angles.cos().to(like.dtype)
    sin = angles.sin().to(like.dtype)
    return cos, sin


def _rotate(torch: Torch, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + H/2) of x [B,N,T,H]."""
    first, second = x.chunk(2, dim=-1)
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    return torch.cat([rotated_first, rotated_second], dim=-1)
