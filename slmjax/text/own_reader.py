"""A user's own reader for files of any other kind, named by a source as "module:function"."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slmjax.errors import UserError, imported, users_error
from slmjax.text.records import Fault, Record, Source
from slmjax.text.streams import broken_errors


def own_reader(source: Source) -> Callable[[Any], Iterator[Record | Fault]]:
    """Return the user's function from a stream to records.

    What the function raises, or yields that is neither a Record nor a Fault, becomes a UserError.
    Raises: UserError where the path leads nowhere or the module fails.
    """
    name = source.reader
    where = f"{source.where}.reader"  # the config's field, for messages
    function = imported(name, where)

    def reader(stream: Any) -> Iterator[Record | Fault]:
        try:
            for item in function(stream):
                if not isinstance(item, Record | Fault):
                    expected = "expected a Record or a Fault of slmjax.text.records"
                    raise TypeError(f"it gave {item!r}; {expected}")
                yield item
        except broken_errors():
            # The file is damaged; the reader is not at fault.
            raise
        except Exception as error:
            raise UserError(f"{where}: '{name}' failed: {users_error(error)}.") from error

    return reader


def reader_identity(source: Source) -> list[str]:
    """Return [name of the source's own reader, hash of the file that it is written in].

    Text is prepared anew where either changes.
    """
    function = imported(source.reader, f"{source.where}.reader")
    file = inspect.getsourcefile(inspect.unwrap(function))
    digest = ""
    # A compiled function has no source file.
    if file:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    return [source.reader, digest]
