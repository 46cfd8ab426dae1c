"""A trained run as a model of the lm-evaluation-harness, so that any of its tasks runs on it.

    from lm_eval import simple_evaluate
    from slmjax.evals.lm_eval_model import HarnessModel

    results = simple_evaluate(model=HarnessModel("runs/a"), tasks=["arc_easy"])

Importing this module needs lm-eval; it is the extra `lm-eval`.
"""

from collections.abc import Sequence
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.evals.continuation_scores import ContinuationScorer, EncodedPair
from slmjax.infer.engine import Engine
from slmjax.infer.load import Loaded, load_model
from slmjax.parallel.mesh import device_kind, make_mesh
from slmjax.text.chat_template import prompt_parts
from slmjax.text.conversations import Turn
from slmjax.text.records import Special

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise UserError(
        "tasks of the lm-evaluation-harness need lm-eval; install it with: "
        "pip install -e '.[lm-eval]'."
    ) from error
