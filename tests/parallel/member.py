"""The launcher, as one process of several, that also notes a hash of every row it reads: `<workdir>-rows/<process>-<start>.jsonl`."""

import json
import os
import sys
from pathlib import Path

import jax

from slmjax.data import loader
from slmjax.train import loop
from tests.data.batch_hashes import row_hashes


class Noting:
    """`local_batches` with a line {"step", "rows", "hashes"} for each batch."""

    def __init__(self, plan, *, start_step, stop_step, local_rows, workers=0):
        self.batches = loader.local_batches(
            plan, start_step=start_step, stop_step=stop_step, local_rows=local_rows, workers=workers
        )
        self.step, self.rows = start_step, local_rows
        self.path = (
            Path(os.environ["SLMJAX_TEST_ROWS"]) / f"{jax.process_index()}-{start_step}.jsonl"
        )
        self.path.parent.mkdir(exist_ok=True)

    def __next__(self):
        batch = next(self.batches)
        with self.path.open("a") as file:
            file.write(
                json.dumps(
                    {
                        "step": self.step,
                        "rows": self.rows(self.step).tolist(),
                        "hashes": row_hashes(batch),
                    }
                )
                + "\n"
            )
        self.step += 1
        return batch

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.batches.close()


if __name__ == "__main__":
    from slmjax.launch import main

    loop.local_batches = Noting
    sys.exit(main())
