"""Train our decoder as a user would write it in PyTorch: the peer of bench/train.py. Needs torch.

It has torch.compile, fused attention and fused AdamW.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from slmjax import config as configs
from slmjax.bench.shell import random_tokens
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import from_config

# Names of torch.nn.attention.SDPBackend.
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
WINDOW = 4  # steps that are timed at once

Tensor = Any  # torch.Tensor; torch is imported late, because it is optional


def train_peer(
    arch: Architecture, batch: int, length: int, *, steps: int, seed: int = 0
) -> dict[str, Any]:
    """Train on random tokens, one document a row, and measure.

    With torch.compile, the fastest attention backend, bfloat16 autocast over float32 masters on a
    GPU (float32 elsewhere), fused AdamW, and gradients clipped to norm 1.

    Args:
      steps: measured, after two that are not.
    Returns: first_step_s (compilation included), step_ms (median over windows of 4 steps),
      peak_bytes, and what ran.
    Raises: UserError where torch is not installed.
    """
    torch = import_torch()
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    backend_ms = attention_ms(arch, batch, length)
    backend = min(backend_ms, key=backend_ms.get, default="")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    model = Decoder(torch, arch).to(device)
    tokens = torch.tensor(random_tokens((batch, length + 1), arch.vocab_size, seed), device=device)
    step = _train_step(torch, model, tokens)

    def window():
        for _ in range(WINDOW):
            step()

    with _attention_backend(backend):
        began = time.perf_counter()
        first_loss = float(step())
        first_step_s = time.perf_counter() - began
        # One more step that does not count, as the allocator may still grow.
        step()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        windows = max(3, steps // WINDOW)
        step_seconds = [_seconds(torch, window) / WINDOW for _ in range(windows)]
    version = torch.__version__.partition("+")[0]
    attention = backend.split("_")[0].lower() or "default"
    return {
        "who": f"PyTorch {version}, torch.compile, {attention} attention, fused AdamW",
        "attention_ms": backend_ms,
        "first_step_s": first_step_s,
        "step_ms": 1e3 * statistics.median(step_seconds),
        "loss": first_loss,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "compute": "bfloat16" if on_gpu else "float32",
    }


def attention_ms(arch: Architecture, batch: int, length: int) -> dict[str, float]:
    """Return {backend: ms} of scaled_dot_product_attention, forward and backward.

    It is causal and grouped. Only those of BACKENDS are there that run on this device, so none
    without a GPU.
    """
    torch = import_torch()
    if not torch.cuda.is_available():
        return {}
    milliseconds = {}
    for name in BACKENDS:
        once = _attention_call(torch, arch, batch, length)
        try:
            with _attention_backend(name):
                once()
                times = [_seconds(torch, once) for _ in range(10)]
        except RuntimeError:
            continue  # this backend does not take these shapes on this device
        milliseconds[name] = 1e3 * statistics.median(times)
    return milliseconds


def Decoder(torch: Any, arch: Architecture) -> Any:
    """Return the architecture's decoder as a torch module with loss(tokens, targets) -> mean nats.

    The class is made inside, because torch is imported late.
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
            for weight in self.parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=0.02)
            if arch.tied:
                self.head.weight = self.embedding.weight

        def loss(self, tokens, targets):
            x = self.embedding(tokens)  # [B,T,D]
            if x.is_cuda:
                # Autocast leaves a look-up in float32, and with it the whole residual stream.
                x = x.to(torch.bfloat16)
            cos, sin = _rotations(torch, arch, tokens.shape[1], x)
            for layer in self.layers:
                x = layer(x, cos, sin)
            logits = self.head(self.final_norm(x))
            flat_logits = logits.float().view(-1, logits.shape[-1])
            return nn.functional.cross_entropy(flat_logits, targets.reshape(-1))

    return Model()


def import_torch() -> Any:
    """Return the module torch. Raises: UserError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError("the peers need PyTorch: pip install torch.") from error
    return torch


def main() -> None:
    """Read {config, vocab, batch, length, steps} as JSON from stdin and train.

    The figures are printed as one line of JSON.
    """
    question = json.load(sys.stdin)
    config = configs.freeze(configs.from_dict(question.pop("config")))
    arch = from_config(config.model, question.pop("vocab"))
    try:
        figures = train_peer(arch, **question)
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(figures))


def _train_step(torch: Any, model: Any, tokens: Tensor) -> Callable[[], Tensor]:
    """Return a function that takes a step on tokens [B,T+1] and returns the loss."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    compiled_loss = torch.compile(model.loss, dynamic=False)
    device = tokens.device.type

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = compiled_loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _layer_class(torch: Any, arch: Architecture) -> type:
    nn = torch.nn
    attend = nn.functional.scaled_dot_product_attention
    D, F = arch.width, arch.ff_width
    N, K, H = arch.heads, arch.kv_heads, arch.head_dim

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer_norm = nn.RMSNorm(D, eps=arch.norm_eps)
            self.channel_norm = nn.RMSNorm(D, eps=arch.norm_eps)
            self.query = nn.Linear(D, N * H, bias=False)
            self.key = nn.Linear(D, K * H, bias=False)
            self.value = nn.Linear(D, K * H, bias=False)
            self.out = nn.Linear(N * H, D, bias=False)
            self.gate = nn.Linear(D, F, bias=False)
            self.up = nn.Linear(D, F, bias=False)
            self.down = nn.Linear(F, D, bias=False)

        def forward(self, x, cos, sin):
            B, T, _ = x.shape
            y = self.mixer_norm(x)
            # PyTorch's attention has the heads before time: [B,N,T,H].
            q = self.query(y).view(B, T, N, H).transpose(1, 2)
            k = self.key(y).view(B, T, K, H).transpose(1, 2)
            v = self.value(y).view(B, T, K, H).transpose(1, 2)
            q = _rotate(torch, q, cos, sin)
            k = _rotate(torch, k, cos, sin)
            mixed = attend(q, k, v, is_causal=True, enable_gqa=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(B, T, N * H))
            y = self.channel_norm(x)
            gated = nn.functional.silu(self.gate(y)) * self.up(y)
            return x + self.down(gated)

    return Layer


def _rotations(torch: Any, arch: Architecture, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) [T,H/2] of the rotary embedding; device and type are those of `like`."""
    half = arch.head_dim // 2
    exponents = torch.arange(half, device=like.device, dtype=torch.float32) / half
    frequencies = arch.rope_theta**-exponents
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    angles = positions[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotate(torch: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + H/2) of x [B,N,T,H]."""
    first, second = x.chunk(2, dim=-1)
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    return torch.cat([rotated_first, rotated_second], dim=-1)


def _attention_call(torch: Any, arch: Architecture, batch: int, length: int) -> Callable[[], None]:
    """Return a function that runs attention forward and backward once, on random arrays."""

    def random_heads(heads: int) -> Tensor:
        return torch.randn(
            batch,
            heads,
            length,
            arch.head_dim,
            device="cuda",
            dtype=torch.bfloat16,
            requires_grad=True,
        )

    q = random_heads(arch.heads)
    k = random_heads(arch.kv_heads)
    v = random_heads(arch.kv_heads)
    gradient = random_heads(arch.heads)
    attend = torch.nn.functional.scaled_dot_product_attention

    def once() -> None:
        attend(q, k, v, is_causal=True, enable_gqa=True).backward(gradient)

    return once


def _attention_backend(name: str) -> contextlib.AbstractContextManager:
    """Return a context in which attention uses one backend; "" leaves the choice to PyTorch."""
    if not name:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, name))


def _seconds(torch: Any, call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
