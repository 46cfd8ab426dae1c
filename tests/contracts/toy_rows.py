"""Rows of toy.py; worker processes import this file, which does not import jax."""

import numpy as np

from slmjax.data.rows import Field

SIDE, CHANNELS = 4, 2


class Images:
    """Rows of noise [SIDE, SIDE, CHANNELS] in which one quarter is brighter; numpy only."""

    def __init__(self, batch, seed, brighter):
        self.batch, self.seed, self.brighter = batch, seed, brighter

    def shapes(self, step):
        image = Field((self.batch, SIDE, SIDE, CHANNELS), "uint8", ("batch", None, None, None))
        return {"images": image, "quarters": Field((self.batch,), "int32", ("batch",))}

    def read(self, step, rows):
        images, quarters = zip(*(self.row(step, row) for row in rows))
        return np.stack(images), np.array(quarters, np.int32)

    def row(self, step, row):
        random = np.random.default_rng([self.seed, step, row])
        image, quarter = (
            random.integers(0, 160, (SIDE, SIDE, CHANNELS), dtype=np.uint8),
            int(random.integers(4)),
        )
        half, (top, left) = SIDE // 2, divmod(quarter, 2)
        image[half * top : half * (top + 1), half * left : half * (left + 1)] += self.brighter
        return image, quarter

    def unpack(self, compact):
        return {"images": compact[0], "quarters": compact[1]}

    def fingerprint(self, step):
        return f"images of seed {self.seed}" if step else ""
