"""A trained run as a model of the lm-evaluation-harness, so that any of its tasks runs on it.

    from lm_eval import simple_evaluate
    from slmjax.evals.lm_eval_model import HarnessModel
    from slmjax.infer.load import load_model

    simple_evaluate(model=HarnessModel(load_model("runs/a")), tasks=["arc_easy"])

Importing this module needs lm-eval; it is the extra `lm-eval`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.evals.continuation_scores import EncodedPair
from slmjax.evals.evaluation_runs import examined
from slmjax.infer import stops
from slmjax.infer.load import Loaded
from slmjax.parallel.mesh import device_kind, make_mesh
from slmjax.text.chat_template import dialogue_parts, prompt_parts
from slmjax.text.conversations import Turn
from slmjax.text.tokenizer import Special

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

# Special tokens in a prompt of the chat template are written between NULs, so that no task's own
# text is taken for one.
SPECIAL = re.compile("\0([^\0]+)\0")
# Settings of generation that are followed; a task with another one is refused.
FOLLOWED = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")

TokenRequest = tuple[tuple[str, str], list[int], list[int]]


class HarnessModel(TemplateLM):
    """A loaded run or export.

    Every sequence begins with end-of-text, as documents do in training, also where the harness
    would leave it out. Where a context is too long for the rows of training, its last tokens stay.
    As for every model there, bits per byte leave out the end of a document, which ours count.

    Args:
      seed: of sampled answers.
    """

    def __init__(self, loaded: Loaded, seed: int = 0):
        super().__init__()
        device = device_kind(make_mesh({"data": 1}, jax.local_devices()[:1]))
        self._model = examined(loaded, device)
        self._tokenizer = loaded.tokenizer
        self._seed = seed

    @property
    def eot_token_id(self) -> int:
        """The id of end-of-text."""
        return self._tokenizer.eot

    @property
    def max_length(self) -> int:
        """Tokens of a row of training."""
        return self._model.longest

    @property
    def tokenizer_name(self) -> str:
        """A name under which the harness keeps prompts: the tokenizer's hash."""
        return self._tokenizer.sha256

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text, without end-of-text, which scoring adds."""
        # Every second piece is the name of a special token.
        pieces = SPECIAL.split(string)
        parts = []
        for number, piece in enumerate(pieces):
            parts.append(Special(piece) if number % 2 else piece)
        return self._tokenizer.sequence(*parts)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a dialogue as a prompt, with special tokens between NULs, see SPECIAL.

        Raises: UserError for a model that has not learned to answer in turns.
        """
        if not self._model.chat:
            raise UserError(
                "the run has not learned to answer in turns; leave apply_chat_template out."
            )
        turns = [Turn(message["role"], message["content"]) for message in chat_history]
        if add_generation_prompt:
            parts = prompt_parts(turns)
        else:
            parts = dialogue_parts(turns)[:-2]  # the last turn goes on: its end is left out
        pieces = []
        for part in parts:
            pieces.append(f"\0{part.name}\0" if isinstance(part, Special) else part)
        return "".join(pieces)

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return (log p, whether greedy decoding gives it) of each continuation."""
        pairs = []
        for (_, continuation_text), context, continuation in requests:
            # An empty context is end-of-text alone, which the scorer adds.
            if context[:1] == [self.eot_token_id]:
                context = context[1:]
            self._check_room(len(continuation), self.max_length, continuation_text)
            if not continuation:
                end = continuation_text[-40:]
                raise UserError(f"no token of '{end}' belongs to its continuation alone.")
            pairs.append(EncodedPair(list(context), list(continuation)))
        results = self._scored(pairs)
        for (texts, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log p of each text, without its end.

        A text longer than a row of training is cut as held-out text is: each token is predicted
        from those before it in its row, and the first from the last one of the row before.
        """
        pairs, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.eot_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for first, window in enumerate(windows):
                context, continuation = make_disjoint_window(window)
                # The first window's context is end-of-text alone.
                pairs.append(EncodedPair(context if first else [], continuation, first == 0))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (log_p, _) in zip(owners, self._scored(pairs), strict=True):
            totals[number] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the completion of each prompt, up to the first stop string.

        Raises: UserError for a setting that is not among FOLLOWED, and for an answer that may be
          longer than the rows of training.
        """
        texts = [""] * len(requests)
        # Requests of the same settings are decoded together.
        numbers_of: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            settings = normalize_gen_kwargs(request.args[1])
            numbers_of.setdefault(repr(sorted(settings.items())), []).append(number)
        for numbers in numbers_of.values():
            prompts = [requests[number].args[0] for number in numbers]
            settings = normalize_gen_kwargs(requests[numbers[0]].args[1])
            for number, text in zip(numbers, self._generated(prompts, settings, numbers)):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def _generated(
        self, prompts: Sequence[str], settings: Mapping[str, Any], numbers: Sequence[int]
    ) -> list[str]:
        """Return the completions of prompts with the same settings.

        Args:
          numbers: of the requests: the same prompt asked twice is sampled with different seeds.
        """
        for name in settings:
            if name not in FOLLOWED:
                known = ", ".join(FOLLOWED)
                raise UserError(f"a task sets '{name}' for generation; followed are {known}.")
        max_tokens = settings["max_gen_toks"]
        # One token is end-of-text, which the engine adds.
        self._check_room(max_tokens, self.max_length - 1, "an answer")
        room = self.max_length - max_tokens - 1
        ids = []
        for prompt in prompts:
            whole = self.tok_encode(prompt)
            ids.append(whole[max(0, len(whole) - room) :])
        # Sorted by length, so that prompts of a batch have about the same.
        order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
        until = [stop for stop in settings["until"] if stop]
        short = until if sum(len(stop.encode()) for stop in until) <= stops.MOST_BYTES else []
        sampling = {}
        if settings["do_sample"]:
            sampling = {
                "temperature": float(settings.get("temperature", 1.0)),
                "top_k": int(settings.get("top_k") or 0),
                "top_p": float(settings.get("top_p", 1.0)),
            }
        completions = self._model.engine.generate(
            [ids[place] for place in order],
            max_tokens=max_tokens,
            stop=short,
            seed=[self._seed + numbers[place] for place in order],
            **sampling,
        )
        texts = [""] * len(ids)
        for place, completion in zip(order, completions, strict=True):
            text = completion.text
            for stop in until:
                text = text.split(stop)[0]
            texts[place] = text
        return texts

    def _scored(self, pairs: Sequence[EncodedPair]) -> list[tuple[float, bool]]:
        scores = self._model.scorer(pairs)
        return list(zip(scores.log_p.tolist(), scores.greedy.tolist(), strict=True))

    def _check_room(self, tokens: int, most: int, what: str) -> None:
        if tokens > most:
            raise UserError(
                f"'{what[:40]}' has {tokens} tokens; the model was trained on rows of "
                f"{self.max_length} and knows no positions beyond; leave the task out."
            )
