"""transformers' generate on a LlamaForCausalLM of the same shape: the peer of bench/decode.py, measured in a process of its own."""

import importlib.util
import json
import statistics
import sys
import time
from typing import Any

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.peers.llama_weights import llama_config
from slmjax.models.architecture import vocab_rows
from slmjax.models.pattern import from_config

CACHES = {
    "dynamic cache": None,
    "static cache, compiled": "static",
}  # transformers compiles the step of a static cache on a GPU


def measure_peer(
    config: configs.Config, batches: list[int], prompt: int, tokens: int, runs: int, seconds: float
) -> tuple[list[dict], list[str]]:
    """(rows as bench/decode.py has them, messages for what could not be measured, which is also what `seconds` did not suffice for).

    Raises: UserError where the config asks for what Llama does not have.
    """
    if missing := [
        name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None
    ]:
        return [], [
            f"no peers: {' and '.join(missing)} not installed here; pip install 'slmjax[hf]'"
        ]
    llama_config(_architecture(config), prompt + tokens)
    question = [configs.to_dict(config), batches, prompt, tokens, runs]
    found, fault = shell.ask(
        "slmjax.bench.peers.generation", question, seconds=seconds, JAX_PLATFORMS="cpu"
    )
    rows, messages = (
        [f for f in found if isinstance(f, dict)],
        [f for f in found if isinstance(f, str)],
    )
    return rows, [*messages, f"peers: {fault}"] if fault else messages


def main() -> None:
    """Measure what stdin asks for; each row (an object) and each message (a string) is a line of JSON on stdout."""
    import torch
    import transformers
    from transformers import LlamaForCausalLM

    values, batches, prompt, tokens, runs = json.load(sys.stdin)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        llama_config(_architecture(configs.freeze(configs.from_dict(values))), prompt + tokens)
    )
    model = model.to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()
    for name, cache in CACHES.items():
        who = f"transformers {transformers.__version__}, {name}"
        for batch in batches:
            if cache and device == "cpu":
                found = f"{who}: only on a GPU"
            else:
                try:
                    found = {
                        "who": who,
                        "batch": batch,
                        "prompt": prompt,
                        **_measure(model, cache, batch, prompt, tokens, runs),
                    }
                except (
                    RuntimeError,
                    ValueError,
                ) as error:  # out of memory and torch.compile too are RuntimeErrors
                    found = f"{who}, batch {batch}: {(str(error).splitlines() or [type(error).__name__])[0]}"
            print(json.dumps(found), flush=True)


def _measure(
    model: Any, cache: str | None, batch: int, prompt: int, tokens: int, runs: int
) -> dict[str, Any]:
    """Prefill is the time of one new token; a token's time is the rest of a whole call over the other tokens."""
    import torch

    ids = torch.randint(
        0, model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0)
    ).to(model.device)
    cuda = model.device.type == "cuda"

    def seconds(new: int) -> float:
        start = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            use_cache=True,
            cache_implementation=cache,
        )
        if cuda:
            torch.cuda.synchronize()
        if out.shape != (batch, prompt + new):
            raise ValueError(f"generate returned {tuple(out.shape)}")
        return time.perf_counter() - start

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    first = seconds(1) + seconds(tokens)
    seconds(tokens)  # a compiled step records its CUDA graph in its second call
    prefill, whole = (statistics.median(seconds(new) for _ in range(runs)) for new in (1, tokens))
    loop = (whole - prefill) / (tokens - 1) * tokens
    return {
        "prefill ms": 1e3 * prefill,
        "ms a token": 1e3 * loop / tokens,
        "tokens/s": batch * tokens / loop,
        "state MB": None,
        "floor ms": None,
        "compile s": max(0.0, first - prefill - whole) if cache else None,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def _architecture(config: configs.Config) -> Any:
    return from_config(config.model, vocab_rows(config.model.vocab_size, config.data.vocab_size))


if __name__ == "__main__":
    main()
