"""How programs are compiled: XLA's options for a device, and the cache of programs on disk."""

import os
from typing import Any

import jax

MIN_COMPILE_SECONDS = 0.5  # a program that compiles faster is not kept


def compiler_options(
    platform: str, *, tuned: bool = True, triton: bool = False, deterministic: bool = False
) -> dict[str, Any]:
    """Return XLA's options for one program.

    Only measured gains are here, all on one H200 with a 304M model unless another is named.

    Args:
      platform: "gpu", "tpu" or "cpu", as a mesh's devices say.
      tuned: try cuBLAS's algorithms for each matrix product, which doubles the compile time. It
        saves nothing in bfloat16 training, 3 % of a step in float8, a tenth of a decode loop.
      triton: try XLA's own Triton kernels for products too. They save a fifth of a decode loop's
        time, but it compiles in 29 s instead of 10. Training is slower with them (171 instead of
        159 ms a step on an H100).
      deterministic: every run must give the same bits.
    """
    if platform != "gpu":
        return {}
    options: dict[str, Any] = {}
    if not triton:
        options["xla_gpu_enable_triton_gemm"] = False
    if not tuned:
        options["xla_gpu_autotune_level"] = 0
    if deterministic:
        options["xla_gpu_deterministic_ops"] = True
    return options


def use_compile_cache() -> None:
    """Keep compiled programs on disk for later runs, if they took half a second or more.

    The folder is JAX_COMPILATION_CACHE_DIR, else one in the user's cache. Where
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is set, it replaces the half second.
    """
    if not jax.config.jax_compilation_cache_dir:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(base, "slmjax", "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
