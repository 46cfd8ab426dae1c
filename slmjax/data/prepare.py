"""Preparation: named sources of text become a folder of token shards, once; later runs reuse it.

The folder's name has a hash of everything that decides its content: the tokenizer, grouping,
held-out share and seed; of each source, the fields that are read; of each file, its name, size and
content. The content is the SHA-256 of a local file (remembered in the cache by path, size and
mtime), and the store's checksum or commit hash of a remote one.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slmjax.data.build import build_shards, ready
from slmjax.data.preparation_plan import Crew, PreparationPlan
from slmjax.data.preparation_settings import plan_preparation
from slmjax.data.prepared import Prepared, open_prepared, preparation_summary
from slmjax.data.scan_reports import check_faults
from slmjax.errors import UserError
from slmjax.text.claims import locked
from slmjax.text.files import writable
from slmjax.text.tokenizer import SPECIAL
from slmjax.text.units import Progress, terminal_progress

__all__ = ["Prepared", "preparation_summary", "prepare"]


def prepare(
    data: Any,
    *,
    seed: int,
    cache: str | Path,
    processes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    timeout: float = 3600.0,
    special: tuple[str, ...] = tuple(SPECIAL),
) -> Prepared:
    """Tokenize text into shards under `cache`, or reuse what is there.

    Called again after it was killed, it continues. Two calls at once give one result.

    Args:
      data: config.data, or any object with its fields sources, tokenizer, vocab_size, group_by,
        heldout (a share) and max_bad_share.
      seed: decides which groups are held out and which text the tokenizer is trained on.
      processes: 1 works in this process; None takes all cores for more than 8 MB of text.
      process_index, process_count: this host among those that share the work; `cache` and the text
        must be on a shared file system.
      progress: called with (stage, bytes done, bytes in all); None shows a line where stderr is a
        terminal.
      say: called with each message that a person should read.
      timeout: seconds without progress of the other hosts after which a UserError is raised.
      special: special tokens of a tokenizer that is trained.
    Raises: UserError for sources, tokenizer, grouping or cache that cannot be used, and for more
      than max_bad_share bad records.
    """
    if "://" in str(cache):
        raise UserError(
            f"data.cache is '{cache}'; "
            "expected a folder of this machine or of a shared file system."
        )
    if progress is None:
        with terminal_progress() as line:
            return prepare(
                data,
                seed=seed,
                cache=cache,
                processes=processes,
                process_index=process_index,
                process_count=process_count,
                progress=line,
                say=say,
                timeout=timeout,
                special=special,
            )
    cache = Path(os.path.expanduser(cache)).absolute()
    crew = Crew(processes, process_index, process_count, progress, say, timeout)
    # In this block, an OSError for a full disk or a read-only folder becomes a UserError that names
    # the cache.
    with writable(cache):
        cache.mkdir(parents=True, exist_ok=True)
        plan = plan_preparation(data, seed=seed, cache=cache, special=special, crew=crew)
        if not ready(plan):
            _build_alone(plan, cache)
        prepared = open_prepared(plan)
    # Checked again: the limit may be stricter now than when the folder was prepared.
    check_faults(prepared.manifest["sources"], data.max_bad_share)
    # Printed by every run that uses the folder, not only by the one that prepared it.
    for warning in prepared.manifest["warnings"]:
        say(f"warning: {warning}")
    return prepared


def _build_alone(plan: PreparationPlan, cache: Path) -> None:
    """Build the folder under a lock, unless another process has done so meanwhile."""
    crew = plan.crew
    # Hosts that share the work must not wait for each other, so each has a lock of its own.
    suffix = f"-{crew.host}" if crew.hosts > 1 else ""
    lock = cache / f".{plan.folder.name}{suffix}.lock"
    with locked(lock, crew.say) as held:
        # The process that held the lock before may have prepared the same text.
        if ready(plan):
            return
        if plan.is_large:
            megabytes = plan.text_size / 1e6
            crew.say(
                f"preparing about {megabytes:,.0f} MB of text in {plan.folder} "
                f"({crew.processes} processes)"
            )
        build_shards(plan, alone=bool(held) and crew.hosts == 1)
