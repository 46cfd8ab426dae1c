"""Batches whose rows depend on the model, on disk: one file for each step."""

import io

import numpy as np
from etils import epath

from slmjax.data.rows import Arrays
from slmjax.errors import UserError
from slmjax.parallel import hosts
from slmjax.tasks.task import DrawingTask
from slmjax.text.files import write_atomic
from slmjax.train.state import TrainState


class DrawnBatches:
    """The batches that `task.prepare` drew, as files `<step>.npz` in a folder.

    A batch is on disk before the update that uses it, so that a run that was killed in between goes
    on with the same batch.
    """

    def __init__(self, folder: epath.Path, task: DrawingTask):
        self.folder, self.task = folder, task

    def rows(self, step: int, state: TrainState, held: np.ndarray) -> Arrays:
        """Return this process's rows of a step's batch; draw and write it where it has no file.

        Args:
          held: the rows of the global batch that this process holds.
        Raises: UserError where the file is damaged.
        """
        file = self.folder / f"{step}.npz"
        # On a slow file system one process may see the file before another does.
        is_on_disk = hosts.all_agree(file.exists())
        if not is_on_disk:
            drawn = self.task.prepare(step, state.params, state.buffers)
            if hosts.is_first():
                self._write(file, drawn)
            hosts.barrier(f"drawn {step}")  # the others read what the first has written
        fields = self.task.rows.shapes(step)
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
                batch = {name: arrays[name] for name, field in fields.items() if field.by_rows}
        except Exception as error:  # a damaged archive fails in many ways
            raise UserError(
                f"'{file}' cannot be read ({error}); remove it, and its rows are drawn again."
            ) from error
        return {name: array[held] for name, array in batch.items()}

    def prune(self, step: int) -> None:
        """Delete the batches of earlier steps than `step`, the oldest that a run can go back to."""
        if not (hosts.is_first() and self.folder.exists()):
            return
        for file in self.folder.glob("*.npz"):
            if int(file.stem) < step:
                file.unlink()

    def _write(self, file: epath.Path, drawn: Arrays) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **drawn)
        write_atomic(file, buffer.getvalue())
