"""The study of mixers in language: its variants differ in the mixer and not in size."""

import pytest

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.models.pattern import from_config

VARIANTS = ["attention", "ssm", "gla", "gdn", "kda", "hybrid", "shared_keys", "shared_blocks"]


def test_all_variants_have_as_many_parameters_and_the_same_training():
    found = [configs.load_recipe(f"configs/studies/mixers.py:{name}") for name in VARIANTS]
    counts = [
        sizes.parameters(from_config(configs.freeze(config).model, config.model.vocab_size)).total
        for config in found
    ]
    assert max(counts) < 1.01 * min(counts)
    assert (
        len(
            {
                (
                    config.train.to_json(),
                    config.data.to_json(),
                    config.model.width,
                    config.model.layers,
                )
                for config in found
            }
        )
        == 1
    )
    assert len(
        {
            (config.model.pattern, config.model.share_kv, config.model.share_blocks)
            for config in found
        }
    ) == len(VARIANTS)
    assert (
        counts[0]
        == sizes.parameters(
            from_config(configs.freeze(configs.load_recipe("configs/10m.py")).model, 16384)
        ).total
    )


def test_a_variant_that_is_none_is_named():
    with pytest.raises(UserError, match="no variant 'mamba'; there is attention"):
        configs.load_recipe("configs/studies/mixers.py:mamba")


def test_a_budget_that_mixers_use_up_is_a_mistake_that_is_named():
    arch = from_config(
        configs.freeze(configs.load_recipe("configs/studies/mixers.py:ssm")).model, 16384
    )
    with pytest.raises(
        UserError, match=r"mixers ssm has .* without feed-forward layers, more than 1,000,000"
    ):
        sizes.ff_width_for(arch, 10**6)
