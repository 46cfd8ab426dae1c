"""Before anything imports jax: eight host devices, and annotations of slmjax checked at run time (jaxtyping with beartype)."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import hypothesis
import jaxtyping

# An int passes where a float is asked for, as everywhere in Python's typing (beartype refuses it by default).
jaxtyping.install_import_hook("slmjax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Compiling dwarfs an example's own time, so no deadline; the same examples in every run, so that a failure is never a matter of luck.
hypothesis.settings.register_profile("slmjax", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("slmjax")


def pytest_configure(config):
    # beartype looks at random items of containers, also of those that a strategy builds; hypothesis warns of any use of `random` there.
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
