"""The task "orpo": preference optimisation on prepared pairs, see tasks/orpo.py."""

import functools
from typing import Any

from slmjax.config import Config
from slmjax.data.pair_plan import PairPlan, check_nll
from slmjax.data.prepare_stage import batch_plan
from slmjax.errors import UserError
from slmjax.tasks.orpo import Orpo
from slmjax.train.program import Program
from slmjax.train.text import TextBuilder


class PairBuilder(TextBuilder):
    """Prepares the pairs of config.data, and makes the task of ORPO on them.

    Sources of text and dialogues may be mixed in: their tokens count in the NLL.

    Args:
      odds_weight: weight of the odds term; the paper's lambda, TRL's beta.
      nll_on, nll_reduction: see PairPlan. The paper has "chosen" and "sequence". TRL has "sequence"
        and "token", with a mean over each microbatch.
    Raises: UserError for an odds_weight that is no number of 0 or more.
    """

    def __init__(
        self,
        config: Config,
        workdir: str,
        init_from: str,
        *,
        odds_weight: float = 0.1,
        nll_on: str = "chosen",
        nll_reduction: str = "token",
    ):
        is_number = isinstance(odds_weight, int | float) and not isinstance(odds_weight, bool)
        # NaN is refused too.
        if not is_number or not 0 <= odds_weight < float("inf"):
            raise UserError(
                f"config.task: odds_weight is {odds_weight!r}; expected a number of 0 or more."
            )
        # Before hours of preparing.
        check_nll(nll_on, nll_reduction)
        self.odds_weight = float(odds_weight)
        # Checked by PairPlan.
        self.nll: dict[str, Any] = {"nll_on": nll_on, "nll_reduction": nll_reduction}
        super().__init__(config, workdir, init_from)

    def task(self, program: Program) -> Orpo:
        """See TaskBuilder."""
        config = self.config
        plan = batch_plan(
            config.data,
            config.train,
            self.prepared,
            seed=config.seed,
            cuts=program.place_cuts,
            make=functools.partial(PairPlan, **self.nll),
        )
        evaluations = self.evaluations(program, plan)
        return Orpo(plan, evaluations, self.odds_weight, config.train.z_loss)
