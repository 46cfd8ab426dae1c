"""The stage `synthesize`: a teacher writes a textbook, document by document, and nothing that was paid for is lost or paid for again."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from slmjax import config as configs
from slmjax.config import SynthesizeConfig
from slmjax.errors import UserError, nearest
from slmjax.readable import percent
from slmjax.synthesize import plan, subjects
from slmjax.synthesize.budget import Budget
from slmjax.synthesize.checks import judge_text
from slmjax.synthesize.coverage import coverage, markdown
from slmjax.synthesize.documents import Writer, records
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.live import StatusLine
from slmjax.synthesize.produce import Tally, produce
from slmjax.synthesize.teachers import (
    NAMES,
    Answer,
    Checkpoint,
    OpenAI,
    ProgramTeacher,
    Teacher,
    TeacherRequest,
)
from slmjax.text.files import write_atomic


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
    """Write `documents`, `rejects.jsonl`, `coverage.json` and `coverage.md` into a work directory; the same command again goes on.

    Args:
      init_from: with the teacher `checkpoint`, the work directory of the run whose model writes.
      trust: names of code that this checkpoint may name, see config.check_trust.
    Returns: 0, or 128 + signal where one ended it early (what was answered is written all the same).
    Raises: UserError for settings that make no sense, for whatever keeps a teacher from answering
      (what was answered before is written all the same), and where no document could be written.
    """
    if processes > 1:
        raise UserError(
            "--processes: the synthesizer is one process, as its journal has one writer; raise config.synthesize.concurrent."
        )
    chosen = synthesize_settings(config.synthesize)
    if init_from and chosen["teacher"] != "checkpoint":
        raise UserError(
            f"--init_from names the model of the teacher checkpoint; config.synthesize.teacher is {chosen['teacher']}."
        )
    planned = make_plan(config.seed, chosen)
    folder, journal_folder, copies = epath.Path(workdir), chosen["journal"], chosen["copies"]
    if not journal_folder and "://" in workdir:
        raise UserError(
            f"config.synthesize.journal is empty and the work directory is {workdir}; SQLite needs a local disk: name a local folder "
            f"(its segments are copied to {workdir}/journal)."
        )
    if "://" in workdir and not copies:
        copies = f"{workdir}/journal"
    teacher = make_teacher(config.seed, chosen, init_from, trust)
    journal = Journal(journal_folder or str(folder / "journal"), copies=copies)
    try:
        write_atomic(folder / "config.json", configs.to_dict(config) | {"synthesize": chosen})
        try:
            tally = _in_a_loop(lambda: _ask(planned, chosen, teacher, journal))
        except UserError as error:
            keys = (request.key for request in requests(planned, teacher, chosen["documents"]))
            if not any(key in journal.answered for key in keys) and (folder / "documents").exists():
                kept = f"{folder / 'documents'} is what an earlier run with other settings wrote."
                raise UserError(f"{error} {kept}") from error
            with contextlib.suppress(UserError, OSError):
                finish(folder, planned, chosen, teacher, journal)
            raise
        summary = finish(folder, planned, chosen, teacher, journal)
    finally:
        journal.close()
    for line in ending(folder, chosen, tally, summary):
        print(line)
    if not summary["documents"] and not tally.signal:
        raise UserError(nothing_written(folder, chosen, tally, summary))
    return 128 + tally.signal if tally.signal else 0


def nothing_written(
    folder: epath.Path, chosen: dict[str, Any], tally: Tally, figures: dict[str, Any]
) -> str:
    """Why a run has no document, with the words of the server where there are some."""
    rejected = sum(figures["rejected"].values())
    if not rejected:
        limits = f"tokens={chosen['tokens']}, cost={chosen['cost']:g}"
        return (
            f"config.synthesize: no document was written; the budget ({limits}) allows no request."
        )
    advice = ""
    if "max_tokens" in figures["why"] and any(
        word in figures["why"] for word in ("cut at", "used up")
    ):
        advice = f"Raise config.synthesize.max_tokens, {chosen['max_tokens']}; "
    if any(quote + name + quote in figures["why"] for name in NAMES for quote in "'\"`"):
        advice = "config.synthesize.names says what the endpoint calls a parameter, or that it has none; "
    return (
        f"config.synthesize: no document was written; {rejected:,} answers were rejected or never came, "
        f"most of them for this reason: {figures['why']}. {advice}"
        f"{folder / 'rejects.jsonl'} has them all."
    )


def synthesize_settings(config: SynthesizeConfig) -> dict[str, Any]:
    """Return config.synthesize as the stage reads it.

    Raises: UserError for settings that do not fit each other.
    """
    out = dataclasses.asdict(config)
    for name in ("base_url", "model"):
        if out[name] and out["teacher"] in ("program", "checkpoint"):
            raise UserError(
                f"config.synthesize.{name} is '{out[name]}', which is for the teacher openai; "
                f"config.synthesize.teacher is {out['teacher']}."
            )
    if out["passages"] and out["teacher"] in ("program", "checkpoint"):
        raise UserError(
            f"config.synthesize.passages: the teacher {out['teacher']} reads no passages; leave them out, or take the teacher openai."
        )
    for name, called in out["names"].items():
        if name not in NAMES or not isinstance(called, str):
            raise UserError(
                f"config.synthesize.names: {name}={called!r}; expected what the endpoint calls "
                f"{', '.join(NAMES)} ('': it takes none).{nearest(name, NAMES)}"
            )
    if out["names"].get("max_tokens") == "":
        raise UserError(
            "config.synthesize.names.max_tokens is empty; the budget counts with that limit."
        )
    if out["names"] and out["teacher"] in ("program", "checkpoint"):
        raise UserError(
            f"config.synthesize.names is for the teacher openai; config.synthesize.teacher is {out['teacher']}."
        )
    prices = out["price"]
    if len(prices) != 2 or min(prices) < 0:
        raise UserError(
            f"config.synthesize.price is {prices!r}; expected dollars for a million tokens (of prompts, of answers)."
        )
    if out["cost"] and not any(prices):
        raise UserError(
            "config.synthesize.cost limits dollars, and config.synthesize.price is 0; say what a million tokens cost."
        )
    out["formats"] = plan.chosen("formats", out["formats"], tuple(plan.FORMATS))
    if not out["audiences"] or not all(
        isinstance(name, str) and name.strip() for name in out["audiences"]
    ):
        raise UserError(
            f"config.synthesize.audiences is {out['audiences']!r}; name {', '.join(plan.AUDIENCES)}, or describe your own."
        )
    return out


def make_plan(seed: int, chosen: dict[str, Any]) -> plan.DocumentPlan:
    """The plan of a run's settings.

    Raises: UserError for topics, formats or passages that do not exist; the embedded teacher knows the topics with problems alone.
    """
    program, known = chosen["teacher"] == "program", tuple(subjects.KINDS.values())
    topics = known if program and not chosen["topics"] else plan.read_topics(chosen["topics"])
    if program and (unknown := [topic for topic in topics if topic not in known]):
        raise UserError(
            f"config.synthesize.topics: the embedded teacher does not know '{unknown[0]}'; it knows {', '.join(known)}, and other teachers "
            f"take any topic.{nearest(unknown[0], known)}"
        )
    return plan.DocumentPlan(
        seed=seed,
        topics=topics,
        audiences=chosen["audiences"],
        formats=chosen["formats"],
        passages=plan.read_seeds(chosen["passages"]),
        solved=program,
    )


def make_teacher(
    seed: int, chosen: dict[str, Any], init_from: str, trust: Sequence[str] = ()
) -> Teacher:
    """The teacher that the settings name."""
    sampling = {name: chosen[name] for name in ("max_tokens", "temperature", "top_p")}
    if chosen["teacher"] == "program":
        return ProgramTeacher(seed)
    if chosen["teacher"] == "checkpoint":
        concurrent, licence = chosen["concurrent"], chosen["licence"]
        return Checkpoint(
            init_from, sampling=sampling, seed=seed, batch=concurrent, licence=licence, trust=trust
        )
    settings = {name: chosen[name] for name in ("timeout", "licence", "names")}
    return OpenAI(chosen["model"], chosen["base_url"], sampling=sampling, seed=seed, **settings)


def requests(
    planned: plan.DocumentPlan, teacher: Teacher, documents: int
) -> Iterator[TeacherRequest]:
    """The requests of the first items of a plan."""
    for number in range(documents):
        item = planned.item(number)
        text, parameters = teacher.prompt(item), teacher.parameters(item)
        yield TeacherRequest(plan.key(teacher.model, text, parameters), text, parameters, item)


async def _ask(
    planned: plan.DocumentPlan, chosen: dict[str, Any], teacher: Teacher, journal: Journal
) -> Tally:
    budget = Budget(tokens=chosen["tokens"], cost=chosen["cost"], spent=journal.spent())
    with StatusLine() as line:
        return await produce(
            requests(planned, teacher, chosen["documents"]),
            teacher,
            journal,
            budget,
            Tally(chosen["documents"], cost=budget.spent_cost),
            price=chosen["price"],
            per_minute=chosen["per_minute"],
            concurrent=chosen["concurrent"],
            retries=chosen["retries"],
            judge=rejected,
            tell=line,
        )


def rejected(request: TeacherRequest, answer: Answer) -> str:
    """Why an answer will be rejected, or ""."""
    return judge_text(request.item, answer.text, answer.finish)[0]


def finish(
    folder: epath.Path,
    planned: plan.DocumentPlan,
    chosen: dict[str, Any],
    teacher: Teacher,
    journal: Journal,
) -> dict[str, Any]:
    """Write shards, rejects and the coverage report from the journal; the report's figures."""
    writer = Writer(folder, chosen["shard"])
    checked = {"answers": 0, "equations": 0, "": 0}

    def kept() -> Iterator[dict[str, Any]]:
        for record in records(requests(planned, teacher, chosen["documents"]), journal, teacher):
            writer.add(record)
            if not record["reason"]:
                checked[record["checked"]] += 1
                yield record

    figures = coverage(kept(), chosen["documents"])
    writer.close()
    spent = journal.spent()
    most = max(writer.rejected, key=writer.rejected.get, default="")
    figures |= {"why": writer.examples.get(most, "")}  # an example of the reason of most rejects
    figures |= {
        "rejected": dict(writer.rejected),
        "checked": {name or "nothing": n for name, n in checked.items()},
    }
    figures |= {"spent": {"tokens": spent[0], "dollars": spent[1]}}
    write_atomic(folder / "coverage.json", json.dumps(figures, indent=1) + "\n")
    write_atomic(folder / "coverage.md", markdown(figures, writer.rejected))
    return figures


def ending(
    folder: epath.Path, chosen: dict[str, Any], tally: Tally, figures: dict[str, Any]
) -> list[str]:
    """The last lines: what there is, why it stopped, what comes next."""
    made, rejected, checked, spent = (
        figures["documents"],
        sum(figures["rejected"].values()),
        figures["checked"],
        figures["spent"],
    )
    lines = [
        f"{made:,} documents in {folder / 'documents'}, {rejected:,} rejected (rejects.jsonl says why).",
        f"Answers compared with computed ones in {checked['answers']:,}, calculations done again in {checked['equations']:,}; "
        f"near-duplicates {percent(figures['near_duplicates'])}. Coverage: {folder / 'coverage.md'}",
    ]
    if rejected > made > 0:
        lines.append(
            f"WARNING: most answers were rejected, most of them for this reason: {figures['why']}."
        )
    money = f"{spent['tokens']:,} tokens and ${spent['dollars']:.2f}"
    if spent["dollars"] and not tally.spent:
        lines.append(f"Spent, with what is reserved for unanswered requests: {money}.")
    if tally.spent:
        lines.append(
            f"The budget is spent ({money}): {made + rejected:,} of {chosen['documents']:,} documents were asked for. The same command "
            "with more config.synthesize.tokens or cost goes on."
        )
    elif tally.signal:
        lines.append("Stopped. The same command goes on and asks for nothing twice.")
    return lines


def _in_a_loop(make: Callable[[], Any]) -> Any:
    """The result of a coroutine; in a notebook, where a loop runs already, in a thread with a loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(make())).result()
