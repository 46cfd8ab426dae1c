"""The batch plan: the global batch of every step as a list of rows, known without any text."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from slmjax.data.folding import fold, unfold
from slmjax.data.mixing import Begin, Mixture
from slmjax.data.packing import RowPlan
from slmjax.data.rows import Arrays, Fields, text_fields
from slmjax.data.whole_rows import WholeRowPlan, whole_row_plan
from slmjax.text.records import TEXT

# Rows at the start of the run whose documents `usual_places` counts, in less than a second.
SCANNED_ROWS = 32_768
# Version of the fingerprint. It goes up when the same settings give other batches than before.
FORMAT = 2
# Added to epochs x rows before rounding down: the float product may lie just below a whole number.
ROUNDING = 1e-6


class BatchPlan:
    """The global batch of every step, as a pure function of the step.

    Args:
      train: {name: ShardSet}.
      seq_len, batch: tokens of a row and rows of a global batch.
      steps: of the run. They only decide where `phases` begin and end, which is on whole steps.
      seed: of the order of documents and sources.
      packing: "best_fit" or "concat", see `RowPlan`. Dialogues and pairs are never cut inside of a
        turn, see `WholeRowPlan`.
      phases, weights: see `Mixture`.
      max_epochs: how often a source may be read at most; a name left out, or None: without bound.
        `Mixture` says what happens at the bound.
      scores: {source: "NAME"}: its documents are visited from low to high score, see `RowPlan`;
        {source: "-NAME"}: from high to low. The names enter the fingerprint.
      max_segments: most documents of a row; None: for each source as many as its text needs (see
        `RowPlan`).
      cuts: (microbatches, devices that a microbatch's rows are split over). It is for attention
        kernels that need to know how many documents a device holds (see `text_fields`); None for
        all others.
      after: the plan of the steps before these, with batches of another shape or order (see
        `phased_plan.PhasedPlan`). Each source is read on from where that plan leaves it. None: the
        plan begins at step 0.
    Attributes: first_step and stop_step, between which the plan's steps lie; max_segments, which no
      row of any step exceeds. It follows from the text, seq_len, packing and seed, and does not
      change with `steps`, phases or weights.
    Raises: UserError for a source shorter than one row and for what `Mixture` refuses.
    """

    def __init__(
        self,
        train: Mapping[str, Any],
        *,
        seq_len: int,
        batch: int,
        steps: int,
        seed: int,
        packing: str = "best_fit",
        phases: Any = (),
        weights: Mapping[str, float | None] | None = None,
        max_epochs: Mapping[str, float | None] | None = None,
        scores: Mapping[str, str] | None = None,
        max_segments: int | None = None,
        cuts: tuple[int, int] | None = None,
        after: "BatchPlan | None" = None,
    ):
        self.train = dict(train)
        self.batch = batch
        self.seq_len = seq_len
        self.cuts = cuts
        # Where the plan begins in the run: its step, row and token, and what has come before.
        self.first_step, self._first_row, self._first_token, self._past = 0, 0, 0, ""
        if after is not None:
            self.first_step = after.stop_step
            self._first_row = after.total_rows
            self._first_token = after.total_tokens
            self._past = after.fingerprint(after.stop_step)
        self.stop_step = self.first_step + steps
        self.total_rows = self._first_row + steps * batch
        self.total_tokens = self._first_token + steps * batch * seq_len
        # Callers list every source: those without a score or a bound are left out here.
        self.scores = _without_empty(scores)
        self.max_epochs = _without_empty(max_epochs)
        # The same for all sources, and part of the fingerprint.
        self.row_settings = {
            "seq_len": seq_len,
            "seed": seed,
            "packing": packing,
            "max_segments": max_segments,
        }
        # The ids that mark turns, where a source has dialogues.
        self.chat = next((shards.chat for shards in train.values() if shards.chat), None)
        self.row_plans = self._row_plans(dict.fromkeys(train, max_segments))
        self.max_segments = max(plan.max_segments for plan in self.row_plans)

        self.mixture = Mixture(
            tuple(self.train),
            [plan.size for plan in self.row_plans],
            phases,
            steps * batch,
            seed,
            weights=weights,
            align=batch,
            caps=self._caps(),
            row_tokens=seq_len,
            begin=self._begin(after),
        )
        self.phase_count = (after.phase_count if after else 0) + len(phases)

    @property
    def spans(self) -> "tuple[BatchPlan, ...]":
        """The plans of the run's parts, in each of which all batches have one shape: this one."""
        return (self,)

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Return (index of the source, row of that source) of every row of the global batch."""
        first = self._row_of(step)
        numbers = range(first, first + self.batch)
        return [self.mixture.pick(number) for number in numbers]

    def documents_on_device(self, step: int, microbatches: int = 1, devices: int = 1) -> int:
        """Return the most documents that one device holds of one microbatch of a step.

        It is known without reading any text. See `most_documents` for the arguments.
        """
        documents = []
        for source, row in self.rows(step):
            plan = self.row_plans[source]
            segments = len(plan.row(row)) * plan.segments_per_document
            # A row that is all padding counts as one document.
            documents.append(max(1, segments))
        return most_documents(np.array(documents), microbatches, devices)

    @functools.cached_property
    def usual_places(self) -> int:
        """Most documents that a device holds of a microbatch in the plan's first 32,768 rows.

        It is rounded up to a multiple of the rows that a device holds of a microbatch. Only plans
        with `cuts` have it.
        """
        rows_on_device = self.batch // math.prod(self.cuts)
        if self.max_segments == 1:
            # Nothing to count: every row is one document.
            return rows_on_device
        scanned_rows = min(self.total_rows - self._first_row, SCANNED_ROWS)
        steps = max(1, scanned_rows // self.batch)
        most = 0
        for step in range(self.first_step, self.first_step + steps):
            most = max(most, self.documents_on_device(step, *self.cuts))
        return math.ceil(most / rows_on_device) * rows_on_device

    def places(self, step: int) -> int | None:
        """Return how many documents a device makes room for in a step; None without `cuts`.

        It is `usual_places`, doubled until the step's documents fit: there are few different
        numbers, because a program is compiled for each.
        """
        if self.cuts is None:
            return None
        places = self.usual_places
        documents = self.documents_on_device(step, *self.cuts)
        while places < documents:
            places *= 2
        return places

    def shapes(self, step: int) -> Fields:
        """See Rows."""
        return text_fields(self.batch, self.seq_len, self.places(step))

    def read(self, step: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """See Rows: some rows in the compact form of `fold`."""
        shard_sets = list(self.train.values())
        rows_to_read = []
        for row in rows:
            source, source_row = self.mixture.pick(self._row_of(step) + row)
            spans = self.row_plans[source].row(source_row)
            rows_to_read.append((shard_sets[source], spans))
        return fold(rows_to_read, self.seq_len)

    def unpack(self, compact: Mapping[str, np.ndarray]) -> Arrays:
        """See Rows and `unfold`.

        Returns: tokens, targets, segments, positions int32 and weights float32, each [rows, T].
        """
        return unfold(compact, self.chat)

    def documents(self, step: int) -> list[str]:
        """Return the documents of a step's global batch, in order, each once.

        Each is like "books: novels.jsonl line 17".
        """
        names = list(self.train)
        documents = {}  # used as a set that keeps the order of its entries
        for source, row in self.rows(step):
            name = names[source]
            shards = self.train[name]
            for span in self.row_plans[source].row(row):
                document = f"{name}: {shards.name(span.doc)}"
                documents[document] = None
        return list(documents)

    def epochs(self, step: int | None = None) -> dict[str, float]:
        """Return how often each source has been read when `step` begins.

        It is the source's rows so far over the rows of its epoch. None: at the end of the plan.
        """
        row = self.total_rows
        if step is not None:
            row = self._row_of(step)
        rows_read = self.mixture.rows_before(row)
        epochs = {}
        for name, rows, plan in zip(self.train, rows_read, self.row_plans):
            epochs[name] = int(rows) / plan.rows_per_epoch
        return epochs

    def shares(self, points: int = 40) -> dict[str, Any]:
        """Return each source's share of the rows over the run, planned and realised, for a figure.

        Returns: {"planned": {"tokens", "shares"}, "realised": {"steps", "tokens", "shares"}}.
          planned: corners of a piecewise linear curve. "tokens" of the run before each corner, and
            "shares" {source: its share at each corner}. At a jump there are two corners.
          realised: averages over `points` equal parts of the run (fewer in a run of fewer steps).
            "steps" at the end of each part, "tokens" at its middle, "shares" {source: its share of
            each part's rows}.
        """
        corners = self.mixture.weights()
        planned = {
            "tokens": [self._tokens_before(row) for row, _ in corners],
            "shares": self._by_source([weights for _, weights in corners]),
        }
        # Parts begin and end on whole steps, so a short run has fewer of them than `points`.
        spaced = np.linspace(self.first_step, self.stop_step, points + 1)
        edge_steps = np.unique(spaced.round()).astype(int)
        edges = self._row_of(edge_steps)  # [parts + 1], in rows
        rows_before = [self.mixture.rows_before(int(row)) for row in edges]
        rows_of_part = np.diff(rows_before, axis=0)  # [parts, sources]
        shares = rows_of_part / np.diff(edges)[:, None]
        tokens = self._tokens_before(edges)
        realised = {
            "steps": edge_steps[1:].tolist(),
            "tokens": ((tokens[1:] + tokens[:-1]) // 2).tolist(),
            "shares": self._by_source(shares),
        }
        return {"planned": planned, "realised": realised}

    def spent(self) -> dict[str, int]:
        """Return {source: token of the run from which on it has reached its max_epochs}."""
        return {name: self._tokens_before(row) for name, row in self.mixture.spent.items()}

    def fingerprint(self, step: int) -> str:
        """Return a digest of everything that decides the batches before `step`.

        Equal for two plans whose earlier batches agree although `steps`, later phases or unused
        sources differ; different where any earlier batch could differ.
        """
        stretches = self.mixture.stretches_before(self._row_of(step))
        # Only sources that have had a weight: the others have decided nothing so far.
        names = set()
        # (start, weights), or with a ramp (start, weights, rows of the ramp, old weights).
        for _, weights, *ramp in stretches:
            names.update(weights)
            if ramp:
                _, old_weights = ramp
                names.update(old_weights)
        fingerprints = {}
        scores = {}
        for name in names:
            fingerprints[name] = self.train[name].fingerprint
            if name in self.scores:
                scores[name] = self.scores[name]
        content = {
            "format": FORMAT,
            "batch": self.batch,
            "settings": self.row_settings,
            "phases": stretches,
            "sources": fingerprints,
        }
        # Left out where there are none, so that the fingerprints of runs that began before there
        # were scores stay the same.
        if scores:
            content["scores"] = scores
        # As well: most plans begin at step 0.
        if self._past:
            content["after"] = [self.first_step, self._past]
        if not step:
            # Nothing has been read before step 0, so any plan may begin there.
            content = {}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __getstate__(self) -> dict:
        """Return the state for a pickle, with only `max_segments` of the row plans of text.

        Their tables are large, so a worker process makes its own. The bound `max_segments` takes
        time to compute, so it is kept. Plans of whole documents are small, and to make one may
        read text: they are kept.
        """
        bounds = {}
        for name, plan in zip(self.train, self.row_plans):
            if isinstance(plan, WholeRowPlan):
                bounds[name] = plan
            else:
                bounds[name] = plan.max_segments
        return self.__dict__ | {"row_plans": bounds}

    def __setstate__(self, state: dict) -> None:
        bounds = state["row_plans"]
        self.__dict__.update(state)
        # Row plans are made from the attributes that have just been set.
        self.row_plans = self._row_plans(bounds)

    def _row_of(self, step: Any) -> Any:
        """Return the run's row with which a step, or each of an array of steps, begins."""
        return self._first_row + (step - self.first_step) * self.batch

    def _tokens_before(self, row: Any) -> Any:
        """Return the run's tokens before a row of this plan, or before each of an array."""
        return self._first_token + (row - self._first_row) * self.seq_len

    def _begin(self, after: "BatchPlan | None") -> Begin | None:
        """Return what the mixture goes on from; None where nothing comes before this plan."""
        if after is None:
            return None
        counts = []
        rows_read = after.mixture.rows_before(after.total_rows)
        for rows, old, new in zip(rows_read, after.row_plans, self.row_plans, strict=True):
            counts.append(_row_after(int(rows), old, new))
        units = after.mixture.last_units
        return Begin(self._first_row, np.array(counts, np.int64), units, after.phase_count)

    def _row_plans(
        self, bounds: Mapping[str, int | WholeRowPlan | None]
    ) -> list[RowPlan | WholeRowPlan]:
        """Return the plan of each source's rows: of whole documents for dialogues and pairs.

        Args:
          bounds: for each source of text the most documents of a row, None: as many as its text
            needs. For dialogues and pairs the plan, where a pickle has brought it.
        """
        plans = []
        for name, shards in self.train.items():
            if isinstance(bounds[name], WholeRowPlan):
                plans.append(bounds[name])
                continue
            if shards.kind != TEXT:
                seed = self.row_settings["seed"]
                plans.append(whole_row_plan(shards, self.seq_len, seed=seed, name=name))
                continue
            settings = self.row_settings | {"max_segments": bounds[name]}
            scores = self._scores_of(name)
            plan = RowPlan(shards.lengths, name=name, scores=scores, **settings)
            plans.append(plan)
        return plans

    def _caps(self) -> dict[str, int]:
        """Return the most rows of each source that has a bound on its epochs."""
        caps = {}
        for name, plan in zip(self.train, self.row_plans):
            if name in self.max_epochs:
                rows = self.max_epochs[name] * plan.rows_per_epoch
                caps[name] = math.floor(rows + ROUNDING)
        return caps

    def _scores_of(self, name: str) -> np.ndarray | None:
        """Return the score of each document of a source, to be visited from low to high."""
        if name not in self.scores:
            return None
        scores = self.train[name].scores
        # "-NAME" is from high to low.
        if self.scores[name].startswith("-"):
            return -scores
        return scores

    def _by_source(self, shares: Sequence | np.ndarray) -> dict[str, list[float]]:
        """Return shares [points, sources] as {source: [its share at each point]}."""
        columns = np.transpose(shares).tolist()  # [sources][points]
        return dict(zip(self.train, columns))


def _row_after(rows: int, old: RowPlan | WholeRowPlan, new: RowPlan | WholeRowPlan) -> int:
    """Return the row of `new` that goes on where the first `rows` rows of `old` end.

    Both plans are of one source, and have the same documents in an epoch. The place in the epoch is
    kept, rounded up to whole rows: in tokens of running text, as a share of the epoch where rows
    hold whole documents.
    """
    epoch, row = divmod(rows, old.rows_per_epoch)
    if isinstance(new, WholeRowPlan):
        place = -(-row * new.rows_per_epoch // old.rows_per_epoch)
    else:
        place = -(-row * old.seq_len // new.seq_len)
    # The last rows of the two may end at different tokens: the next epoch then begins.
    return epoch * new.rows_per_epoch + min(place, new.rows_per_epoch)


def most_documents(documents: Int[np.ndarray, "B"], microbatches: int = 1, devices: int = 1) -> int:
    """Return the most documents that any device holds of any microbatch.

    Args:
      documents: how many each row of the batch holds.
      microbatches: how many the batch is cut into; row i is in microbatch i % microbatches.
      devices: how many share the rows of each microbatch.
    """
    # [microbatches, rows of a microbatch], then [microbatches, devices, rows of a device].
    by_microbatch = documents.reshape(-1, microbatches).T
    by_device = by_microbatch.reshape(microbatches, devices, -1)
    return int(by_device.sum(-1).max())


def _without_empty(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return {source: setting} without the sources that have none (None or "")."""
    kept = {}
    for name, setting in (settings or {}).items():
        if setting not in (None, ""):
            kept[name] = setting
    return kept
