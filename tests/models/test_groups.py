"""The table of parameter groups, parameter by parameter."""

import jax
import pytest
from slmjax.models.groups import GROUPS, group_of, stacked_axes

from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block

# Every parameter of a model with every option: group, updated by Muon, decays, leading axes that its product sums over.
EVERY_PARAMETER = {
    "embedding": ("embedding", False, False, 0),
    "final_norm/scale": ("vector", False, False, 0),
    "head": ("head", False, True, 0),
    "stack/0/0/channel/down": ("matrix", True, True, 1),
    "stack/0/0/channel/gate": ("matrix", True, True, 1),
    "stack/0/0/channel/up": ("matrix", True, True, 1),
    "stack/0/0/channel_norm/scale": ("vector", False, False, 0),
    "stack/0/0/mixer/gate": ("matrix", True, True, 1),
    "stack/0/0/mixer/key": ("matrix", True, True, 1),
    "stack/0/0/mixer/key_norm/scale": ("vector", False, False, 0),
    "stack/0/0/mixer/out": ("matrix", True, True, 2),
    "stack/0/0/mixer/query": ("matrix", True, True, 1),
    "stack/0/0/mixer/query_norm/scale": ("vector", False, False, 0),
    "stack/0/0/mixer/value": ("matrix", True, True, 1),
    "stack/0/0/mixer_norm/scale": ("vector", False, False, 0),
} | {
    f"stack/1/{position}/mixer/{name}": group
    for position, names in enumerate((
        "gate value write read step out step_bias decay_log skip out_norm/scale conv_value conv_write conv_read conv_value_bias "
        "conv_write_bias conv_read_bias",
        "query key value gate out decay_down decay_up decay_bias out_norm/scale",
        "query key value gate out decay erase decay_log decay_bias out_norm/scale conv_query conv_key conv_value",
        "query key value gate_down gate_up out decay_down decay_up erase decay_log decay_bias out_norm/scale conv_query conv_key "
        "conv_value",
    ))
    for name in names.split()
    for group in [
        ("matrix", True, True, 2) if name == "out"
        else ("matrix", True, True, 1) if name in ("query", "key", "value", "gate", "write", "read")
        else ("matrix", False, True, 1) if name in ("step", "decay", "erase", "decay_down", "decay_up", "gate_down", "gate_up")
        else ("vector", False, False, 0)
    ]
} | {f"stack/1/{position}/mixer_norm/scale": ("vector", False, False, 0) for position in range(5)} | {
    "stack/1/4/own/mix": ("own", False, False, 0)
}  # fmt: skip


RECURRENT = tuple(Block(mixer, "none") for mixer in ("ssm", "gla", "gdn", "kda", "tests.models.own:Mean"))


def _tree():
    arch = Architecture(16, 8, 2, 1, 4, 12, (((Block(),), 3), (RECURRENT, 3)), qk_norm=True, output_gate=True, tied=False)
    tree = jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


def test_every_parameter_has_the_group_that_is_written_here():
    found = {path: group_of(path) for path in _tree()}
    assert {path: (g.name, g.muon, g.decays, g.inputs) for path, g in found.items()} == EVERY_PARAMETER


def test_a_group_names_the_axes_that_the_product_sums_over():
    """Stacked axes first, then the inputs: what is left of each matrix is what it writes."""
    width, heads, head_dim, ff_width = 8, 2, 4, 12
    inputs = {path: shape[stacked_axes(path) :][: group_of(path).inputs] for path, shape in _tree().items() if group_of(path).muon}
    assert inputs.pop("stack/0/0/mixer/out") == (heads, head_dim)
    assert inputs.pop("stack/1/0/mixer/out") == (4, head_dim)  # Mamba-2 is twice as wide
    assert all(inputs.pop(f"stack/1/{position}/mixer/out") == (heads, head_dim) for position in (1, 2, 3))
    assert inputs.pop("stack/0/0/channel/down") == (ff_width,)
    assert set(inputs.values()) == {(width,)}


def test_stacked_axes_are_those_of_the_stack():
    for path, shape in _tree().items():
        assert stacked_axes(path) == (1 if path.startswith("stack/") else 0)
        assert not path.startswith("stack/") or shape[0] == 3


@pytest.mark.parametrize("path", ["stack/0/0/mixer/convolution", "bias", "stack/0/0/channel/gate/extra", "final_norm/bias"])
def test_a_parameter_that_no_group_knows_is_an_error_that_names_it(path):
    with pytest.raises(KeyError, match=path):
        group_of(path)


def test_a_parameter_of_two_groups_is_an_error(monkeypatch):
    monkeypatch.setattr("slmjax.models.groups.GROUPS", (*GROUPS, GROUPS[0]))
    with pytest.raises(KeyError, match="'embedding' matches 2 groups"):
        group_of("embedding")
