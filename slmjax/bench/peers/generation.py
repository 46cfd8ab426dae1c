"""Time transformers' generate on a LlamaForCausalLM of our shape: the peer of bench/decode.py.

It runs in a process of its own.
"""

import importlib.util
import json
import statistics
import sys
import time
from typing import Any, NamedTuple

from slmjax import config as configs
from slmjax.bench import shell
from slmjax.bench.peers.llama_weights import llama_config
from slmjax.models.architecture import Architecture, vocab_rows
from slmjax.models.pattern import from_config

Module = Any  # a torch module; torch is imported late, because it is optional
Cache = str | None  # transformers' cache_implementation

# {name in the table: cache_implementation of transformers}. On a GPU transformers compiles the step
# of a static cache.
CACHES = {
    "dynamic cache": None,
    "static cache, compiled": "static",
}


class Workload(NamedTuple):
    """One measurement."""

    batch: int  # prompts at once
    prompt: int  # tokens of each prompt
    tokens: int  # generated after each prompt
    runs: int  # of which the median counts


def measure_peer(
    config: configs.Config, batches: list[int], prompt: int, tokens: int, runs: int, seconds: float
) -> tuple[list[dict], list[str]]:
    """Measure each cache of transformers at each batch size.

    Args:
      prompt, tokens, runs: see Workload.
      seconds: time limit for all measurements together.
    Returns: (rows with the columns of bench/decode.py; a message for each measurement that failed,
      and one if the time limit ended them).
    Raises: UserError where the config asks for something that Llama lacks.
    """
    libraries = ("torch", "transformers")
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        return [], [f"no peers: {names} not installed here; pip install 'slmjax[hf]'"]
    # Raise here if Llama lacks something: an error in the other process would only be a message.
    arch = _architecture(config.model, config.data.vocab_size)
    llama_config(arch, prompt + tokens)
    question = [configs.to_dict(config), batches, prompt, tokens, runs]
    # JAX in the other process must leave the GPU to torch.
    answers, fault = shell.ask(
        "slmjax.bench.peers.generation", question, seconds=seconds, JAX_PLATFORMS="cpu"
    )
    rows = [answer for answer in answers if isinstance(answer, dict)]
    messages = [answer for answer in answers if isinstance(answer, str)]
    if fault:
        messages.append(f"peers: {fault}")
    return rows, messages


def main() -> None:
    """Answer the question of `measure_peer`, which comes as JSON from stdin.

    Prints a line of JSON for each row (an object) or message (a string).
    """
    import torch
    import transformers
    from transformers import LlamaForCausalLM

    values, batches, prompt, tokens, runs = json.load(sys.stdin)
    config = configs.freeze(configs.from_dict(values))
    arch = _architecture(config.model, config.data.vocab_size)
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(arch, prompt + tokens))
    model.eval()
    if on_gpu:
        model.to("cuda", torch.bfloat16)
    else:
        model.to("cpu", torch.float32)
    for name, cache in CACHES.items():
        who = f"transformers {transformers.__version__}, {name}"
        for batch in batches:
            if cache and not on_gpu:
                answer = f"{who}: only on a GPU"
            else:
                workload = Workload(batch, prompt, tokens, runs)
                answer = _row(model, who, cache, workload)
            print(json.dumps(answer), flush=True)


def _row(model: Module, who: str, cache: Cache, workload: Workload) -> dict[str, Any] | str:
    """Return a row, or a message if the measurement failed."""
    try:
        figures = _measure(model, cache, workload)
    except (RuntimeError, ValueError) as error:
        # torch.compile's errors and too little memory are RuntimeErrors as well.
        lines = str(error).splitlines() or [type(error).__name__]
        return f"{who}, batch {workload.batch}: {lines[0]}"
    return {
        "who": who,
        "batch": workload.batch,
        "prompt": workload.prompt,
        **figures,
    }


def _measure(model: Module, cache: Cache, workload: Workload) -> dict[str, Any]:
    """Return the measured columns of a row.

    Prefill is the time of a call that generates one token. A call for all tokens takes longer; the
    difference, divided by the other tokens, is the time of a token.
    """
    import torch

    batch, prompt, tokens, runs = workload
    on_gpu = model.device.type == "cuda"
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), generator=random)
    ids = ids.to(model.device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def seconds(new_tokens: int) -> float:
        return _generate_seconds(model, ids, cache, new_tokens)

    first_calls = seconds(1) + seconds(tokens)
    # A compiled step records its CUDA graph in its second call, which must not count.
    seconds(tokens)
    prefill = statistics.median(seconds(1) for _ in range(runs))
    whole_call = statistics.median(seconds(tokens) for _ in range(runs))
    token_seconds = (whole_call - prefill) / (tokens - 1)

    compile_seconds = None
    if cache:
        compile_seconds = max(0.0, first_calls - prefill - whole_call)
    return {
        "prefill ms": 1e3 * prefill,
        "ms a token": 1e3 * token_seconds,
        "tokens/s": batch / token_seconds,
        # Only our own rows have these two.
        "state MB": None,
        "floor ms": None,
        "compile s": compile_seconds,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


def _generate_seconds(model: Module, ids: Any, cache: Cache, new_tokens: int) -> float:
    """Generate tokens greedily after the prompts `ids` [batch, prompt]; return the seconds.

    Raises: ValueError if a row has too few tokens: its time would mean nothing.
    """
    import torch

    batch, prompt = ids.shape
    start = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        # Both, so that no end-of-text token ends a row early.
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        cache_implementation=cache,
    )
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if output.shape != (batch, prompt + new_tokens):
        raise ValueError(f"generate returned {tuple(output.shape)}")
    return seconds


def _architecture(model: configs.ModelConfig, tokenizer_size: int) -> Architecture:
    return from_config(model, vocab_rows(model.vocab_size, tokenizer_size))


if __name__ == "__main__":
    main()
