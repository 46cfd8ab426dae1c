"""Rows that depend on the model are on disk before the update that uses them."""

import numpy as np
import pytest
from etils import epath

from slmjax.data.rows import Field
from slmjax.errors import UserError
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.train.drawn import DrawnBatches
from slmjax.train.state import TrainState, no_spikes
from tests.train.small import FixedRows


class Threes(FixedRows):
    def __init__(self):
        self.fields = {
            "tokens": Field((4, 3), "int32", ("batch", None)),
            "places": Field((2,), "int8", (None,)),
        }


class Drawing(LanguageModeling):
    """A task that draws other rows each time it is asked."""

    asked: list

    def __init__(self):
        super().__init__(Threes())
        object.__setattr__(self, "asked", [])

    def prepare(self, step, params, buffers):
        self.asked.append(step)
        return {"tokens": np.arange(12, dtype=np.int32).reshape(4, 3) + 100 * len(self.asked)}


STATE = TrainState(0, {}, {}, {}, no_spikes())


def test_what_was_drawn_is_used_again_by_the_next_start_and_by_every_process(tmp_path):
    task = Drawing()
    journal = DrawnBatches(epath.Path(tmp_path / "drawn"), task)
    first = journal.rows(7, STATE, np.arange(4))["tokens"]
    assert first[0, 0] == 100 and task.asked == [7]
    again = DrawnBatches(epath.Path(tmp_path / "drawn"), task)
    np.testing.assert_array_equal(again.rows(7, STATE, np.array([1, 3]))["tokens"], first[[1, 3]])
    assert task.asked == [7]
    assert again.rows(8, STATE, np.arange(4))["tokens"][0, 0] == 200


def test_records_that_no_checkpoint_goes_back_to_go_and_a_damaged_one_is_named(tmp_path):
    task = Drawing()
    journal = DrawnBatches(epath.Path(tmp_path / "drawn"), task)
    for step in range(4):
        journal.rows(step, STATE, np.arange(4))
    journal.prune(2)
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["2.npz", "3.npz"]
    (tmp_path / "drawn" / "3.npz").write_bytes((tmp_path / "drawn" / "3.npz").read_bytes()[:100])
    with pytest.raises(UserError, match=r"3\.npz' cannot be read .* its rows are drawn again"):
        journal.rows(3, STATE, np.arange(4))
