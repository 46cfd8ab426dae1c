"""The smallest model on the embedded textbook, with everything on that a run can leave behind."""

from slmjax import config
from tests.recipes import smallest


def get_config():
    c = smallest.get_config()
    c.data.sources, c.data.cache = config.ConfigDict(), ""
    c.eval.every, c.eval.samples, c.eval.sample_tokens = 5, 2, 8
    c.log.tensorboard = False
    return c
