"""What a user would write in PyTorch: the same decoder under torch.compile, with fused attention and fused AdamW. Needs torch."""

import json
import statistics
import sys
import time
from typing import Any

from slmjax import config as configs
from slmjax.bench.shell import random_tokens
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import from_config

BACKENDS = (
    "FLASH_ATTENTION",
    "CUDNN_ATTENTION",
    "EFFICIENT_ATTENTION",
)  # of torch.nn.attention.SDPBackend


def import_torch() -> Any:
    """torch. Raises: UserError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError("the peers need PyTorch: pip install torch.") from error
    return torch


def attention_ms(arch: Architecture, batch: int, length: int) -> dict[str, float]:
    """{backend: ms} of scaled_dot_product_attention (causal, grouped), forward and backward, for those of BACKENDS that run here."""
    torch = import_torch()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found = {}
    for name in BACKENDS if torch.cuda.is_available() else ():
        heads = arch.heads, arch.kv_heads, arch.kv_heads, arch.heads
        q, k, v, g = (
            torch.randn(
                batch,
                n,
                length,
                arch.head_dim,
                device="cuda",
                dtype=torch.bfloat16,
                requires_grad=True,
            )
            for n in heads
        )

        def once(q=q, k=k, v=v, g=g):
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            ).backward(g)

        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                once()
                found[name] = 1e3 * statistics.median(_timed(torch, once) for _ in range(10))
        except RuntimeError:
            continue  # this backend does not take these shapes on this device
    return found


def train_peer(
    arch: Architecture, batch: int, length: int, *, steps: int, seed: int = 0
) -> dict[str, Any]:
    """Train on random tokens, one document a row, and measure.

    torch.compile, the best attention backend, bfloat16 autocast over float32 masters on a GPU (float32 elsewhere), AdamW fused, gradients
    clipped to norm 1.
    Args:
      steps: measured, after two that are not.
    Returns: first_step_s (compilation included), step_ms (median over windows of 4 steps), peak_bytes, and what was run.
    """
    torch = import_torch()
    import contextlib

    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = attention_ms(arch, batch, length)
    backend = min(found, key=found.get, default="")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    model = Decoder(torch, arch).to(device)
    decays = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.tensor(random_tokens((batch, length + 1), arch.vocab_size, seed), device=device)
    loss_of = torch.compile(model.loss, dynamic=False)

    def once():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def window():
        for _ in range(4):
            once()

    with sdpa_kernel(getattr(SDPBackend, backend)) if backend else contextlib.nullcontext():
        began = time.perf_counter()
        first = float(once())
        first_step = time.perf_counter() - began
        once()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        times = [_timed(torch, window) / 4 for _ in range(max(3, steps // 4))]
    attention = f"{backend.split('_')[0].lower()} attention" if backend else "default attention"
    return {
        "who": f"PyTorch {torch.__version__.partition('+')[0]}, torch.compile, {attention}, fused AdamW",
        "attention_ms": found,
        "first_step_s": first_step,
        "step_ms": 1e3 * statistics.median(times),
        "loss": first,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "compute": "bfloat16" if device == "cuda" else "float32",
    }


def Decoder(torch: Any, arch: Architecture) -> Any:
    """The architecture's decoder as a torch module with loss(tokens, targets) -> mean nats."""
    nn, F = torch.nn, torch.nn.functional
    D, N, K, H, T = arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.ff_width

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer_norm, self.channel_norm = (
                nn.RMSNorm(D, eps=arch.norm_eps),
                nn.RMSNorm(D, eps=arch.norm_eps),
            )
            self.query, self.key, self.value = (nn.Linear(D, n * H, bias=False) for n in (N, K, K))
            self.out, self.gate, self.up, self.down = (
                nn.Linear(*s, bias=False) for s in ((N * H, D), (D, T), (D, T), (T, D))
            )

        def forward(self, x, cos, sin):
            B, S, _ = x.shape
            y = self.mixer_norm(x)
            q, k, v = (
                of(y).view(B, S, -1, H).transpose(1, 2) for of in (self.query, self.key, self.value)
            )
            mixed = F.scaled_dot_product_attention(
                _rotate(torch, q, cos, sin),
                _rotate(torch, k, cos, sin),
                v,
                is_causal=True,
                enable_gqa=True,
            )
            x = x + self.out(mixed.transpose(1, 2).reshape(B, S, N * H))
            y = self.channel_norm(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(arch.vocab_size, D)
            self.layers = nn.ModuleList([Layer() for _ in range(arch.layers)])
            self.final_norm = nn.RMSNorm(D, eps=arch.norm_eps)
            self.head = nn.Linear(D, arch.vocab_size, bias=False)
            for p in self.parameters():
                if p.ndim > 1:
                    nn.init.normal_(p, std=0.02)
            if arch.tied:
                self.head.weight = self.embedding.weight

        def loss(self, tokens, targets):
            x = self.embedding(tokens)
            if x.is_cuda:
                x = x.to(torch.bfloat16)
            frequency = arch.rope_theta ** (
                -torch.arange(H // 2, device=x.device, dtype=torch.float32) / (H // 2)
            )
            angle = (
                torch.arange(tokens.shape[1], device=x.device, dtype=torch.float32)[:, None]
                * frequency
            )
            cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
            for layer in self.layers:
                x = layer(x, cos, sin)
            logits = self.head(self.final_norm(x))
            return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))

    return Model()


def _rotate(torch: Any, x: Any, cos: Any, sin: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _timed(torch: Any, once: Any) -> float:
    began = time.perf_counter()
    once()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Read {config, vocab, batch, length, steps} as JSON, train, and print the figures as one line of JSON."""
    spec = json.load(sys.stdin)
    arch = from_config(
        configs.freeze(configs.from_dict(spec.pop("config"))).model, spec.pop("vocab")
    )
    try:
        print(json.dumps(train_peer(arch, **spec)))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
