"""The stage synthesize: a teacher writes a textbook, document by document.

Every request and answer is journalled, so that the same command started again continues the run:
nothing that was paid for is lost or paid for again. Each start writes all files anew from the
journal.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from etils import epath

from slmjax import config as configs
from slmjax.config import SynthesizeConfig
from slmjax.errors import UserError, nearest
from slmjax.synthesize import subjects
from slmjax.synthesize.budget import Budget
from slmjax.synthesize.checkpoint_teacher import CheckpointTeacher
from slmjax.synthesize.checks import judge_text
from slmjax.synthesize.coverage import coverage, markdown
from slmjax.synthesize.documents import DocumentWriter, records
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.live import StatusLine
from slmjax.synthesize.openai_teacher import OpenAITeacher
from slmjax.synthesize.plan import DocumentPlan, key
from slmjax.synthesize.plan_inputs import read_seeds, read_topics
from slmjax.synthesize.produce import Tally, produce
from slmjax.synthesize.program_teacher import ProgramTeacher
from slmjax.synthesize.synthesize_settings import check_settings
from slmjax.synthesize.synthesize_summary import summary_lines, why_nothing_written
from slmjax.synthesize.teachers import Answer, Teacher, TeacherRequest
from slmjax.text.files import write_atomic


class _Run(NamedTuple):
    """What the steps of a run share."""

    folder: epath.Path  # the work directory
    settings: SynthesizeConfig
    plan: DocumentPlan
    teacher: Teacher
    journal: Journal

    def all_requests(self) -> Iterator[TeacherRequest]:
        """Return all requests of the run, in order."""
        return requests(self.plan, self.teacher, self.settings.documents)


def run_synthesize(
    config: configs.Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    process: int = 0,
    processes: int = 1,
    trust: Sequence[str] = (),
) -> int:
    """Write documents/, rejects.jsonl, coverage.json and coverage.md into a work directory.

    Args:
      process, processes: number of this process, and of all; only one process is allowed.
      init_from: with the teacher `checkpoint`, the work directory of the run whose model writes.
      trust: names of code that this checkpoint may name, see config.check_trust.
    Returns: 0, or 128 + signal where one ended it early.
    Raises: UserError for settings that make no sense, for whatever keeps a teacher from answering,
      and where no document could be written. Answers that came before a signal or an error are
      written all the same.
    """
    if processes > 1:
        raise UserError(
            "--processes: the synthesizer is one process, as its journal has one writer; raise "
            "config.synthesize.concurrent."
        )
    settings = check_settings(config.synthesize)
    if init_from and settings.teacher != "checkpoint":
        raise UserError(
            "--init_from names the model of the teacher checkpoint; config.synthesize.teacher is "
            f"{settings.teacher}."
        )
    plan = make_plan(config.seed, settings)
    journal_folder, copies = _journal_folders(workdir, settings)
    teacher = make_teacher(config.seed, settings, init_from, trust)
    # The first line that writes: a mistake in the settings leaves nothing behind.
    journal = Journal(journal_folder, copies=copies)
    run = _Run(epath.Path(workdir), settings, plan, teacher, journal)
    try:
        saved = configs.to_dict(config) | {"synthesize": dataclasses.asdict(settings)}
        write_atomic(run.folder / "config.json", saved)
        tally = _ask_for_documents(run)
        figures = _write_files(run)
    finally:
        journal.close()
    for line in summary_lines(run.folder, settings, tally, figures):
        print(line)
    if not figures["documents"] and not tally.signal:
        raise UserError(why_nothing_written(run.folder, settings, figures))
    # A shell, too, reports a process that a signal ended as 128 + signal.
    return 128 + tally.signal if tally.signal else 0


def make_plan(seed: int, settings: SynthesizeConfig) -> DocumentPlan:
    """Return the plan of a run.

    Raises: UserError for topics or passages that do not exist, and for topics that the embedded
      teacher does not know.
    """
    is_embedded = settings.teacher == "program"
    known = tuple(subjects.KINDS.values())  # the topics with a kind of problem
    if is_embedded and not settings.topics:
        topics = known
    else:
        topics = read_topics(settings.topics)
    if is_embedded:
        for topic in topics:
            if topic not in known:
                raise UserError(
                    f"config.synthesize.topics: the embedded teacher does not know '{topic}'; it "
                    f"knows {', '.join(known)}, and other teachers take any topic."
                    f"{nearest(topic, known)}"
                )
    return DocumentPlan(
        seed=seed,
        topics=topics,
        audiences=settings.audiences,
        formats=settings.formats,
        passages=read_seeds(settings.passages),
        solved=is_embedded,
    )


def make_teacher(
    seed: int, settings: SynthesizeConfig, init_from: str, trust: Sequence[str] = ()
) -> Teacher:
    """Return the teacher that the settings name. Raises: UserError where it cannot be used."""
    if settings.teacher == "program":
        return ProgramTeacher(seed)
    sampling = {
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
    }
    if settings.teacher == "checkpoint":
        return CheckpointTeacher(
            init_from,
            sampling=sampling,
            seed=seed,
            batch=settings.concurrent,
            licence=settings.licence,
            trust=trust,
        )
    return OpenAITeacher(
        settings.model,
        settings.base_url,
        sampling=sampling,
        seed=seed,
        timeout=settings.timeout,
        licence=settings.licence,
        names=settings.names,
    )


def requests(plan: DocumentPlan, teacher: Teacher, documents: int) -> Iterator[TeacherRequest]:
    """Yield a request to a teacher for each of the first items of a plan, in order.

    Args:
      documents: how many.
    """
    for number in range(documents):
        item = plan.item(number)
        text, parameters = teacher.prompt(item), teacher.parameters(item)
        yield TeacherRequest(key(teacher.model, text, parameters), text, parameters, item)


def _journal_folders(workdir: str, settings: SynthesizeConfig) -> tuple[str, str]:
    """Return the journal's folder and the folder of its copies ("" for none).

    Raises: UserError for a remote work directory without config.synthesize.journal.
    """
    remote = "://" in workdir
    if remote and not settings.journal:
        raise UserError(
            f"config.synthesize.journal is empty and the work directory is {workdir}; SQLite needs "
            f"a local disk: name a local folder (its segments are copied to {workdir}/journal)."
        )
    copies = settings.copies
    if remote and not copies:
        copies = f"{workdir}/journal"
    return settings.journal or str(epath.Path(workdir) / "journal"), copies


def _ask_for_documents(run: _Run) -> Tally:
    """Ask for all documents that have no answer yet.

    Raises: UserError of `produce`, after the files are written from the answers so far.
    """
    try:
        return _run_coroutine(lambda: _produce(run))
    except UserError as error:
        answered = any(request.key in run.journal.answered for request in run.all_requests())
        documents = run.folder / "documents"
        # Without any answer to these settings the files would be empty. Documents that an earlier
        # run with other settings wrote are better left there.
        if not answered and documents.exists():
            raise UserError(
                f"{error} {documents} is what an earlier run with other settings wrote."
            ) from error
        # The first error is the one to report, even where the files cannot be written either.
        with contextlib.suppress(UserError, OSError):
            _write_files(run)
        raise


async def _produce(run: _Run) -> Tally:
    settings = run.settings
    budget = Budget(tokens=settings.tokens, cost=settings.cost, spent=run.journal.spent())
    with StatusLine() as line:
        return await produce(
            run.all_requests(),
            run.teacher,
            run.journal,
            budget,
            Tally(settings.documents, cost=budget.spent_cost),
            price=settings.price,
            per_minute=settings.per_minute,
            concurrent=settings.concurrent,
            retries=settings.retries,
            judge=_reason_to_reject,
            report=line,
        )


def _reason_to_reject(request: TeacherRequest, answer: Answer) -> str:
    return judge_text(request.item, answer.text, answer.finish)[0]


def _write_files(run: _Run) -> dict[str, Any]:
    """Write documents, rejects and the coverage report from the journal.

    Returns: the figures of coverage.json.
    """
    writer = DocumentWriter(run.folder, run.settings.shard)
    checked = Counter(answers=0, equations=0, nothing=0)

    # Writes each record when `coverage` asks for the next one, so that no list of them is held.
    def accepted() -> Iterator[dict[str, Any]]:
        for record in records(run.all_requests(), run.journal, run.teacher):
            writer.add(record)
            if not record["reason"]:
                checked[record["checked"] or "nothing"] += 1
                yield record

    figures = coverage(accepted(), run.settings.documents)
    writer.close()
    tokens, dollars = run.journal.spent()
    # "why" is the most frequent reason, with the details of its first reject.
    most_frequent = max(writer.rejected, key=writer.rejected.get, default="")
    figures |= {
        "why": writer.examples.get(most_frequent, ""),
        "rejected": dict(writer.rejected),
        "checked": dict(checked),
        "spent": {"tokens": tokens, "dollars": dollars},
    }
    write_atomic(run.folder / "coverage.json", json.dumps(figures, indent=1) + "\n")
    write_atomic(run.folder / "coverage.md", markdown(figures, writer.rejected))
    return figures


def _run_coroutine(make: Callable[[], Coroutine[Any, Any, Tally]]) -> Tally:
    """Run the coroutine that `make` returns in a new event loop, and return its result.

    In a notebook, where this thread has a loop already, the new loop runs in another thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(make())).result()
