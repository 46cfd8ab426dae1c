"""Events of the journal: their fields, their checksums and the SQL that stores and checks them."""

import json
import zlib
from typing import Any, NamedTuple

# The unique index refuses a second end (answer or fault) of one request.
TABLES = """
CREATE TABLE IF NOT EXISTS events (
  n INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, request INTEGER,
  tokens INTEGER NOT NULL, cost REAL NOT NULL, body TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_end ON events (request) WHERE request IS NOT NULL;
"""

# One value for each field of Event.
INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

# The tokens and dollars that count as spent. A request counts with its actual cost, which is in the
# event that ends it, or with its reservation while it has no end.
SPENT = """
SELECT COALESCE(SUM(COALESCE(ends.tokens, asked.tokens)), 0),
  COALESCE(SUM(COALESCE(ends.cost, asked.cost)), 0.0)
FROM events AS asked LEFT JOIN events AS ends ON ends.request = asked.n
WHERE asked.kind = 'request'
"""

# The number of an invalid event, if there is one: a field of another type, an end without its
# request, or a body that is not JSON. `open_body` checks what is in a body.
INVALID = """
SELECT n FROM events WHERE
  typeof(time) NOT IN ('real', 'integer') OR typeof(key) != 'text' OR typeof(body) != 'text'
  OR kind NOT IN ('request', 'answer', 'fault') OR (kind = 'request') != (request IS NULL)
  OR typeof(tokens) != 'integer' OR tokens < 0
  OR typeof(cost) NOT IN ('real', 'integer') OR NOT cost >= 0
  OR NOT json_valid(body)
  OR (request IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM events AS asked WHERE asked.n = events.request AND asked.key = events.key))
LIMIT 1
"""

# Of every event: its number, the checksum of its fields ("row" in its body), and those fields in
# the order of `fields_checksum`.
CHECKED = "SELECT n, json_extract(body, '$.row'), kind, key, request, tokens, cost FROM events"


class Event(NamedTuple):
    """A row of the journal, its fields in the order of the table's columns."""

    n: int  # counts from 1, without a gap
    time: float  # seconds since 1970
    kind: str  # "request", "answer" or "fault"
    key: str  # the request's plan.key, a hash of its model, prompt and parameters
    request: int | None  # number of the request that this event ends; None for a request
    tokens: int  # of a request: reserved; of an answer or fault: used
    cost: float  # dollars, reserved or used in the same way
    # A JSON object. On disk it also holds "crc32", the checksum of the rest of the body, and "row",
    # the checksum of the other fields (see `fields_checksum`).
    body: str


def fields_checksum(kind: str, key: str, request: int | None, tokens: int, cost: float) -> int:
    """Return the checksum of an event's fields, without its number, time and body."""
    # A cost of 0 comes back as 0.0 from a REAL column, and JSON writes the two differently.
    return zlib.crc32(json.dumps([kind, key, request, tokens, float(cost)]).encode())


def seal_body(body: dict[str, Any], checksum: int) -> str:
    """Return a body as it is stored: JSON with its own checksum and the given one of the fields."""
    return json.dumps({**body, "crc32": _body_checksum(body), "row": checksum})


def open_body(event: Event) -> dict[str, Any]:
    """Return an event's body without the checksums.

    Raises: ValueError, which names the event, where the body is not what was written.
    """
    try:
        body = json.loads(event.body)
        body.pop("row", None)
        checksum = body.pop("crc32", None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"event {event.n}: {error}") from error
    # The first version of the journal wrote no checksums.
    if checksum is not None and checksum != _body_checksum(body):
        raise ValueError(f"event {event.n} is not what was written")
    return body


def _body_checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body).encode())
