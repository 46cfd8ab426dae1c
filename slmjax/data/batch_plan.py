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
from slmjax.data.mixing import Mixture
from slmjax.data.packing import RowPlan
from slmjax.data.rows import Arrays, Fields, text_fields

# Rows whose documents are counted for `usual_places`: less than a second of planning.
SCANNED_ROWS = 32_768
# Version of the fingerprint. It goes up when the same settings give other batches than before.
FORMAT = 2
# Added to epochs x rows before it is rounded down: the product may miss a whole number by a bit.
ROUNDING = 1e-6


class BatchPlan:
    """The global batch of every step, as a pure function of the step.

    Args:
      train: {name: ShardSet}.
      seq_len, batch: tokens of a row and rows of a global batch.
      steps: of the run; it only places the boundaries of `phases`, which fall on whole steps.
      seed: of the order of documents and sources.
      packing: "best_fit" or "concat", see `RowPlan`.
      phases, weights: see `Mixture`.
      max_epochs: how often a source may be read at most; a name left out, or None: without bound.
        `Mixture` says what happens at the bound.
      scores: "NAME" for a source whose documents are visited in the order of their scores (see
        `RowPlan`), "-NAME" from high to low.
      max_segments: most documents of a row; None: for each source as many as its text needs (see
        `RowPlan`).
      cuts: (microbatches, devices that a microbatch's rows are split over), where an attention
        kernel wants to know how many documents a device holds (see `text_fields`); None elsewhere.
    Attributes: max_segments, which no row of any step exceeds. It follows from the text, seq_len,
      packing and seed, and does not change with `steps`, phases or weights.
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
    ):
        self.train = dict(train)
        self.batch = batch
        self.seq_len = seq_len
        self.total_rows = steps * batch
        self.cuts = cuts
        # Recipes list every source: those without a score or a cap are left out here.
        self.scores = _without_empty(scores)
        self.max_epochs = _without_empty(max_epochs)
        # The same for all sources, and part of the fingerprint.
        self.row_settings = {
            "seq_len": seq_len,
            "seed": seed,
            "packing": packing,
            "max_segments": max_segments,
        }
        self.row_plans = self._row_plans(dict.fromkeys(train, max_segments))
        self.max_segments = max(plan.max_segments for plan in self.row_plans)

        self.mixture = Mixture(
            tuple(self.train),
            [plan.tokens for plan in self.row_plans],
            phases,
            self.total_rows,
            seed,
            weights=weights,
            align=batch,
            caps=self._caps(),
            row_tokens=seq_len,
        )

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Return (index of the source, row of that source) of every row of the global batch."""
        first = step * self.batch
        numbers = range(first, first + self.batch)
        return [self.mixture.pick(number) for number in numbers]

    def documents_on_device(self, step: int, parts: int = 1, ways: int = 1) -> int:
        """Return the most documents that a device holds at once of a step's batch.

        It is known without reading any text. See `most_documents` for parts and ways.
        """
        documents = []
        for source, row in self.rows(step):
            spans = self.row_plans[source].row(row)
            # A row without documents takes a place too.
            documents.append(max(1, len(spans)))
        return most_documents(np.array(documents), parts, ways)

    @functools.cached_property
    def usual_places(self) -> int:
        """Most documents that a device holds in the steps of the run's first 32,768 rows.

        It is rounded up to a multiple of the rows that a device holds of a microbatch.
        """
        # Rows that a device holds of a microbatch.
        rows = self.batch // math.prod(self.cuts)
        if self.max_segments == 1:
            # Nothing to count: every row is one document.
            return rows
        scanned = min(self.total_rows, SCANNED_ROWS)
        steps = max(1, scanned // self.batch)
        most = 0
        for step in range(steps):
            most = max(most, self.documents_on_device(step, *self.cuts))
        return math.ceil(most / rows) * rows

    def places(self, step: int) -> int | None:
        """Return the documents that a device keeps places for in a step.

        It is the usual number, or that times a power of two: few different programs are compiled.
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
        shards = list(self.train.values())
        picked = []
        for row in rows:
            source, source_row = self.mixture.pick(step * self.batch + row)
            spans = self.row_plans[source].row(source_row)
            picked.append((shards[source], spans))
        return fold(picked, self.seq_len)

    def unpack(self, compact: Mapping[str, np.ndarray]) -> Arrays:
        """See Rows and `unfold`.

        Returns: tokens, targets, segments, positions int32 and weights float32, each [rows, T].
        """
        return unfold(compact)

    def documents(self, step: int) -> list[str]:
        """Return the documents of a step's global batch, in order, each once.

        Each is like "books: novels.jsonl line 17".
        """
        names = list(self.train)
        documents = {}  # a dict keeps the order of what is put into it
        for source, row in self.rows(step):
            name = names[source]
            shards = self.train[name]
            for span in self.row_plans[source].row(row):
                document = f"{name}: {shards.name(span.doc)}"
                documents[document] = None
        return list(documents)

    def epochs(self, step: int | None = None) -> dict[str, float]:
        """Return how often each source has been read when `step` begins.

        It is rows taken over rows of an epoch. None: at the end of the run.
        """
        row = self.total_rows
        if step is not None:
            row = step * self.batch
        taken = self.mixture.rows_before(row)
        epochs = {}
        for name, rows, plan in zip(self.train, taken, self.row_plans):
            epochs[name] = int(rows) / plan.rows_per_epoch
        return epochs

    def shares(self, points: int = 40) -> dict[str, Any]:
        """Return shares of the run's rows, for a figure: as planned, and as the rows fall.

        Returns: {
          "planned": {"tokens": where shares bend or jump, "shares": {source: its shares there}},
          "realised": {"steps": where each of `points` parts of whole steps ends, "tokens": the
            middle of each, "shares": {source: its share of each}}}.
          Planned shares are exact; between two places they move in a line.
        """
        corners = self.mixture.weights()
        planned = {
            "tokens": [row * self.seq_len for row, _ in corners],
            "shares": self._by_source([weights for _, weights in corners]),
        }
        steps = self.total_rows // self.batch
        # A run of fewer steps than points has one part for each step.
        ends = np.unique(np.linspace(0, steps, points + 1).round())
        ends = ends.astype(int) * self.batch  # [parts + 1], in rows
        rows_before = [self.mixture.rows_before(int(row)) for row in ends]
        rows_of_part = np.diff(rows_before, axis=0)  # [parts, sources]
        shares = rows_of_part / np.diff(ends)[:, None]
        middles = (ends[1:] + ends[:-1]) * self.seq_len // 2
        realised = {
            "steps": (ends[1:] // self.batch).tolist(),
            "tokens": middles.tolist(),
            "shares": self._by_source(shares),
        }
        return {"planned": planned, "realised": realised}

    def fingerprint(self, step: int) -> str:
        """Return a digest of everything that decides the batches before `step`.

        Equal for two plans whose earlier batches agree although `steps`, later phases or unused
        sources differ; different where any earlier batch could differ.
        """
        # (start, weights), and with a ramp (start, weights, rows of the ramp, old weights).
        begun = self.mixture.begun(step * self.batch)
        names = set()
        for _, weights, *ramp in begun:
            # Only sources that have had a weight: the others have decided nothing so far.
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
        decides = {
            "format": FORMAT,
            "batch": self.batch,
            "settings": self.row_settings,
            "phases": begun,
            "sources": fingerprints,
        }
        # Left out where there are none, so that the fingerprints of runs that began before there
        # were scores stay the same.
        if scores:
            decides["scores"] = scores
        # Nothing has been read before step 0, so any plan may begin there.
        content = json.dumps(decides if step else {}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def __getstate__(self) -> dict:
        """Return the state without row plans: their tables are large, a worker makes its own.

        Their bounds on documents take time to compute, so these are kept.
        """
        bounds = {}
        for name, plan in zip(self.train, self.row_plans):
            bounds[name] = plan.max_segments
        return self.__dict__ | {"row_plans": bounds}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, row_plans=[])
        # They are made from the rest of the state, which is there now.
        self.row_plans = self._row_plans(state["row_plans"])

    def _row_plans(self, bounds: Mapping[str, int | None]) -> list[RowPlan]:
        """Return the plan of each source's rows; bounds: most documents of a row of each."""
        plans = []
        for name, shards in self.train.items():
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
        """Return shares [places, sources] as {source: share at each place}."""
        columns = np.transpose(shares).tolist()  # [sources][places]
        return dict(zip(self.train, columns))


def most_documents(documents: Int[np.ndarray, "B"], parts: int = 1, ways: int = 1) -> int:
    """Return the most documents that a device holds at once.

    Args:
      documents: in each row of a batch.
      parts: microbatches; row i is in microbatch i % parts.
      ways: devices over which each microbatch is cut.
    """
    by_part = documents.reshape(-1, parts).T  # [parts, rows of a part]
    by_device = by_part.reshape(parts, ways, -1)  # [parts, ways, rows of a device]
    return int(by_device.sum(-1).max())


def _without_empty(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return {source: setting} without the sources that have none (None or "")."""
    kept = {}
    for name, setting in (settings or {}).items():
        if setting not in (None, ""):
            kept[name] = setting
    return kept
