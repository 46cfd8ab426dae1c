"""slmjax: the whole life of a small language model, in JAX."""

__version__ = "0.1.0"
