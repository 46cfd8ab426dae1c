"""Fields that older versions had, each with the one value that holds now."""

from typing import Any

# {field: its fixed value}. A saved run with this value loads; one with another value is refused.
REMOVED: dict[str, Any] = {
    "model.norm_eps": 1e-6,
    "model.stack": [],
    "precision.params": "float32",
    "precision.reductions": "float32",
    "train.b1": 0.9,
    "train.decay_shape": "1-sqrt",
    "train.loss_chunks": 0,
}


def removed_sentence(name: str) -> str:
    """Return a sentence that a field was removed, and which value holds now."""
    return f"the field config.{name} was removed: it is now always {REMOVED[name]!r}."
