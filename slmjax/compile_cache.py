"""Compiled programs kept on disk, so that the next process of the same model on the same device does not compile them again."""

import os

import jax


def use_compile_cache() -> None:
    """Keep compiled programs between runs (JAX_COMPILATION_CACHE_DIR, else a folder in the user's cache)."""
    if not jax.config.jax_compilation_cache_dir:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(base, "slmjax", "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
