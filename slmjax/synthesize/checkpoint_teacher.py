"""A teacher that is a model trained with this library; it continues an opening to a document."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from slmjax.errors import UserError
from slmjax.synthesize.plan import Item, opening
from slmjax.synthesize.teachers import Answer, SamplingTeacher, TeacherRequest

# Wait before the first batch, so that other workers can add their requests to it.
GATHER_SECONDS = 0.05


class CheckpointTeacher(SamplingTeacher):
    """A trained model; requests that wait at the same time are generated as one batch.

    Args:
      workdir: of the training run whose model answers.
      sampling: {"max_tokens", "temperature", "top_p"}.
      seed: of the run; each request gets a seed of its own from it.
      batch: most requests that are generated together.
      licence: note on every document; "" for one that names the work directory.
      trust: names of code that the checkpoint may name, see config.check_trust.
    Raises: UserError where no work directory is given, or the model cannot be loaded.
    """

    name, date = "checkpoint", ""

    def __init__(
        self,
        workdir: str,
        *,
        sampling: Mapping[str, Any],
        seed: int,
        batch: int,
        licence: str = "",
        trust: Sequence[str] = (),
    ):
        if not workdir:
            raise UserError(
                "config.synthesize.teacher is checkpoint; name the run whose model writes: "
                "--init_from=WORKDIR."
            )
        # Imported here: the other teachers need no JAX.
        from slmjax.infer.engine import Engine
        from slmjax.infer.load import load_model
        from slmjax.parallel.compiling import use_compile_cache

        use_compile_cache()
        loaded = load_model(workdir, trust=trust)
        self._engine = Engine(
            loaded.arch, loaded.params, loaded.buffers, loaded.tokenizer, max_batch=batch
        )
        self.model = f"{workdir} step {loaded.step}"
        self.licence = licence or f"output of {workdir}; the licences of its text apply"
        super().__init__(sampling, seed)
        self._batch = batch
        self._waiting: list[tuple[TeacherRequest, asyncio.Future]] = []
        self._generating: asyncio.Task | None = None

    def prompt(self, item: Item) -> str:
        return opening(item)

    async def ask(self, request: TeacherRequest) -> Answer:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._generating is None or self._generating.done():
            self._generating = asyncio.create_task(self._answer_waiting())
        return await future

    async def close(self) -> None:
        if self._generating:
            self._generating.cancel()

    async def _answer_waiting(self) -> None:
        """Answer the waiting requests batch by batch, until there are none."""
        await asyncio.sleep(GATHER_SECONDS)
        while self._waiting:
            batch = self._waiting[: self._batch]
            self._waiting = self._waiting[self._batch :]
            requests = [request for request, _ in batch]
            try:
                answers = await asyncio.to_thread(self._generate, requests)
            except Exception as error:  # else the callers of `ask` would wait for ever
                for _, future in batch:
                    future.set_exception(error)
                raise
            for (_, future), answer in zip(batch, answers):
                if not future.done():  # its caller may have been cancelled
                    future.set_result(answer)

    def _generate(self, requests: list[TeacherRequest]) -> list[Answer]:
        completions = self._engine.generate(
            [request.prompt for request in requests],
            max_tokens=self._sampling["max_tokens"],
            temperature=self._sampling["temperature"],
            top_p=self._sampling["top_p"],
            seed=[request.parameters["seed"] for request in requests],
        )
        answers = []
        for request, completion in zip(requests, completions):
            # The engine also has "end", for a token that ends a text: the document is whole.
            finish = "length" if completion.finish == "length" else "stop"
            tokens = (len(self._engine.encode(request.prompt)), len(completion.tokens))
            # The document includes the opening that was sent as its prompt.
            answers.append(Answer(request.prompt + completion.text, finish, tokens))
        return answers
