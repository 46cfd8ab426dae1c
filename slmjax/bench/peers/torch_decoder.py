"""Train our decoder as a user would write it in PyTorch: the peer of bench/train.py. Needs torch.

It uses torch.compile, fused attention and fused AdamW.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from slmjax import config as configs
from slmjax.bench.peers.torch_model import Decoder, Tensor, Torch
from slmjax.bench.shell import random_tokens
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.pattern import from_config

# Members of torch.nn.attention.SDPBackend.
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
WINDOW = 4  # timed steps between two waits for the device

Call = Callable[[], Any]


def train_peer(
    arch: Architecture, batch: int, length: int, *, steps: int, seed: int = 0
) -> dict[str, Any]:
    """Train on random tokens, one document a row, and measure.

    It uses torch.compile, the fastest attention backend, fused AdamW and gradients clipped to norm
    1. Parameters are float32, with bfloat16 autocast on a GPU.

    Args:
      steps: measured, after two that are not.
    Returns: a dict with who (a name that says what ran), attention_ms (see `attention_ms`),
      first_step_s (with compilation), step_ms (median over windows of 4 steps), loss (of the first
      step), peak_bytes (None without a GPU), device and compute (the type of products).
    Raises: UserError where torch is not installed.
    """
    torch = import_torch()
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    backend_ms = attention_ms(arch, batch, length)
    backend = min(backend_ms, key=backend_ms.get, default="")
    # TF32 for products that stay in float32. torch.compile itself recommends this on such a GPU.
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    model = Decoder(torch, arch).to(device)
    # [B,T+1]: inputs and targets are the same tokens, shifted by one.
    tokens = random_tokens((batch, length + 1), arch.vocab_size, seed)
    step = _train_step(torch, model, torch.tensor(tokens, device=device))

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
            # The peak then counts training alone, without compilation.
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        window_seconds = _seconds(torch, window, max(3, steps // WINDOW))
    step_seconds = statistics.median(window_seconds) / WINDOW
    version = torch.__version__.partition("+")[0]  # without the build, such as +cu130
    # FLASH_ATTENTION is printed as "flash attention".
    attention = backend.partition("_")[0].lower() or "default"
    return {
        "who": f"PyTorch {version}, torch.compile, {attention} attention, fused AdamW",
        "attention_ms": backend_ms,
        "first_step_s": first_step_s,
        "step_ms": 1e3 * step_seconds,
        "loss": first_loss,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "compute": "bfloat16" if on_gpu else "float32",
    }


def attention_ms(arch: Architecture, batch: int, length: int) -> dict[str, float]:
    """Return {backend: ms} of scaled_dot_product_attention, forward with backward.

    Attention is causal, with grouped queries. A backend of BACKENDS that does not run on this
    device is left out; without a GPU, all are.
    """
    torch = import_torch()
    if not torch.cuda.is_available():
        return {}
    milliseconds = {}
    for name in BACKENDS:
        attend_once = _attention_call(torch, arch, batch, length)
        try:
            with _attention_backend(name):
                attend_once()  # loads the kernels
                seconds = _seconds(torch, attend_once, 10)
        except RuntimeError:
            continue  # this backend does not take these shapes on this device
        milliseconds[name] = 1e3 * statistics.median(seconds)
    return milliseconds


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
        # shell.ask reports the last line of stderr.
        sys.exit(str(error))
    print(json.dumps(figures))


def _train_step(torch: Torch, model: Any, tokens: Tensor) -> Call:
    """Return a function that takes a training step on `tokens` [B,T+1] and returns the loss."""
    optimizer = _adamw(torch, model)
    # All batches have one shape, and a program for fixed shapes is faster.
    compiled_loss = torch.compile(model.loss, dynamic=False)
    device = tokens.device.type
    mixed = device == "cuda"

    def step():
        inputs = tokens[:, :-1]
        targets = tokens[:, 1:]
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            loss = compiled_loss(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _adamw(torch: Torch, model: Any) -> Any:
    """Return AdamW with weight decay for matrices and none for norms."""
    matrices = []
    vectors = []
    for weight in model.parameters():
        group = matrices if weight.ndim > 1 else vectors
        group.append(weight)
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=1e-4,
        betas=(0.9, 0.95),
        fused=True,
    )


def _attention_call(torch: Torch, arch: Architecture, batch: int, length: int) -> Call:
    """Return a function that runs attention forward and backward once, on random arrays."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def random_heads(heads: int) -> Tensor:
        return torch.randn(
            (batch, heads, length, arch.head_dim),
            device="cuda",
            dtype=torch.bfloat16,
            requires_grad=True,
        )

    q = random_heads(arch.heads)
    k = random_heads(arch.kv_heads)
    v = random_heads(arch.kv_heads)
    gradient = random_heads(arch.heads)

    def attend_once() -> None:
        mixed = attend(q, k, v, is_causal=True, enable_gqa=True)
        mixed.backward(gradient)

    return attend_once


def _attention_backend(name: str) -> contextlib.AbstractContextManager:
    """Return a context in which attention uses one backend; "" leaves the choice to PyTorch."""
    if not name:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, name))


def _seconds(torch: Torch, call: Call, runs: int) -> list[float]:
    """Call `runs` times; return the seconds that each call and its work on the device took."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        # On a GPU a call returns as soon as its kernels are in the queue.
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
