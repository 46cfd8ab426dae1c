"""The sharding table: every parameter has one spec, and every mistake names its path."""

import re

import jax
import pytest
from jax.sharding import PartitionSpec as P

from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.pattern import from_config
from slmjax.parallel.mesh import make_mesh
from slmjax.parallel.rules import RULES, flatten, shardings, unflatten
from tests.train.small import small_config


def shapes(**model):
    config = small_config()
    config.model.update(model)
    return jax.eval_shape(lambda: lm.init(from_config(config, 512), jax.random.key(0)))


def mesh(**sizes):
    return make_mesh(sizes, jax.devices()[:8])


def test_every_parameter_of_a_model_with_every_option_has_its_spec():
    found = {path: sharding.spec for path, sharding in flatten(shardings(shapes(tied=False), mesh(data=2, fsdp=2, tensor=2))).items()}
    assert found["embedding"] == P("tensor", "fsdp")
    assert found["head"] == P("fsdp", "tensor")
    assert found["stack/0/0/mixer/query"] == P(None, "fsdp", "tensor", None)
    assert found["stack/0/0/mixer/key"] == P(None, "fsdp", "tensor", None)
    assert found["stack/0/0/mixer/out"] == P(None, "tensor", None, "fsdp")
    assert found["stack/0/0/channel/up"] == P(None, "fsdp", "tensor")
    assert found["stack/0/0/channel/down"] == P(None, "tensor", "fsdp")
    assert found["final_norm/scale"] == P(None)


def test_key_value_heads_are_whole_where_the_tensor_axis_exceeds_them():
    found = flatten(shardings(shapes(), mesh(data=2, tensor=4)))
    assert found["stack/0/0/mixer/key"].spec == P(None, "fsdp", None, None)
    assert found["stack/0/0/mixer/query"].spec == P(None, "fsdp", "tensor", None)


def test_mistakes_name_the_path():
    with pytest.raises(ValueError, match="parameter 'stack/0/0/channel/down': dimension 1"):
        shardings(shapes(ff_width=94), mesh(data=2, tensor=4))
    with pytest.raises(ValueError, match="no sharding rule matches parameter 'stack/0/0/mixer/novel'"):
        tree = shapes()
        tree["stack"]["0"]["0"]["mixer"]["novel"] = jax.ShapeDtypeStruct((2, 3), "float32")
        shardings(tree, mesh(data=8))
    with pytest.raises(ValueError, match="'unheard/of' matches no parameter"):
        shardings(shapes(), mesh(data=8), ((r"(?!unheard).*", ()), ("unheard/of", (None,))))


def test_every_rule_of_the_table_is_some_models():
    everything = ("attention", "ssm", "gla", "gdn", "kda", "tests.models.own:Mean")
    names = flatten(shapes(tied=False, pattern=everything, layers=len(everything)))
    idle = [pattern for pattern, _ in RULES if not any(re.fullmatch(pattern, name) for name in names)]
    assert not idle
    for name in names:
        assert sum(bool(re.fullmatch(pattern, name)) for pattern, _ in RULES) == 1, name


def test_flat_and_nested_are_each_others_inverse():
    tree = shapes()
    assert jax.tree.structure(unflatten(flatten(tree))) == jax.tree.structure(tree)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(UserError, match="does not multiply to the 8 devices"):
        mesh(data=3)
    with pytest.raises(UserError, match="at most one is -1"):
        mesh(data=-1, fsdp=-1)
    assert mesh(data=-1, fsdp=2).shape["data"] == 4
