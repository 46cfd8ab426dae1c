"""An OpenAI-compatible server on loopback that misbehaves: python tests/synthesize/server.py LOG [SEED] prints its port.

What it does with a request is its mode: ok, short, limit (429 with Retry-After), error (500), hang, cut, broken, empty, endless. It counts
tokens as a careful provider would: everything but a 429 costs, also where nobody sees an answer, and where that is so, all that the
request allows. A mode that begins with a status, such as '400 [{"message": "no"}]', is an answer as it stands.
"""

import asyncio
import hashlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

MODES = {
    "ok": 54,
    "short": 6,
    "limit": 8,
    "error": 8,
    "hang": 4,
    "cut": 7,
    "broken": 6,
    "empty": 5,
    "endless": 2,
}
WORDS = [
    "river",
    "stone",
    "light",
    "paper",
    "garden",
    "seven",
    "music",
    "winter",
    "bread",
    "silver",
    "cloud",
    "north",
]


class Server:
    """Started at once, on a port of its own, in a thread of its own.

    Args:
      mode: from a request's number and body to its mode.
      log: called with {"key", "mode", "tokens", "time", "text"} for every request that arrives.
    """

    def __init__(self, mode: Callable[[int, dict], str], log: Callable[[dict], None]):
        self._mode, self._log, self.arrived = mode, log, 0
        self.headers: list[dict[str, str]] = []
        self._loop, self._closing = asyncio.new_event_loop(), asyncio.Event()
        started: Future[int] = Future()

        async def serve() -> None:
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
            started.set_result(server.sockets[0].getsockname()[1])
            await self._closing.wait()

        def run() -> None:
            with asyncio.Runner(
                loop_factory=lambda: self._loop
            ) as runner:  # which ends whatever hangs
                runner.run(serve())

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{started.result()}/v1"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head[1:])
                }
                if head[0].startswith("GET"):
                    await send(
                        writer,
                        "200 OK",
                        json.dumps({"object": "list", "data": [{"id": "testers"}]}).encode(),
                    )
                    continue
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.headers.append(headers)
                self.arrived += 1
                if not await self._answer(self._mode(self.arrived - 1, body), body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, mode: str, body: dict, writer: asyncio.StreamWriter) -> bool:
        """Do what the mode says; whether the connection can be used again."""
        prompt = body["messages"][0]["content"]
        key = hashlib.sha256(f"{prompt}/{body.get('seed')}".encode()).hexdigest()[:12]
        rng = random.Random(key)
        asked, allowed = (
            len(prompt.encode()) // 3 + 30,
            body.get("max_tokens") or body["max_completion_tokens"],
        )
        written = 3 if mode == "short" else 0 if mode == "empty" else rng.randint(20, allowed)
        text = (
            "" if mode == "empty" else "# Title\n\nToo short." if mode == "short" else article(key)
        )
        tokens = {"limit": 0, "ok": asked + written, "short": asked + written, "empty": asked}.get(
            mode, asked + allowed
        )
        self._log({"key": key, "mode": mode, "tokens": tokens, "time": time.time(), "text": text})
        usage = {
            "prompt_tokens": asked,
            "completion_tokens": written,
            "total_tokens": asked + written,
        }
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        answer = json.dumps(
            {
                "id": key,
                "object": "chat.completion",
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }
        ).encode()
        if mode[:3].isdecimal() and mode[3:]:
            return await send(writer, f"{mode[:3]} As Asked", mode[4:].encode())
        if mode == "limit":
            return await send(
                writer,
                "429 Too Many Requests",
                b'{"error": {"message": "slower"}}',
                "Retry-After: 0.2\r\n",
            )
        if mode.isdecimal():
            return await send(writer, f"{mode} Refused", b'{"error": {"message": "no"}}')
        if mode == "error":
            return await send(writer, "500 Internal Server Error", b"oops")
        if mode == "hang":
            await asyncio.sleep(3600)
        if mode == "cut":
            await send(writer, "200 OK", answer, length=len(answer), cut=len(answer) // 2)
            return False
        if mode == "endless":
            await send(writer, "200 OK", b'{"choices": [{"message": {"content": "', length=10**12)
            while True:
                writer.write(b"and so on " * 4096)
                await writer.drain()
        await asyncio.sleep(rng.uniform(0.0, 0.05))
        return await send(writer, "200 OK", answer[:-40] if mode == "broken" else answer)


async def send(
    writer: asyncio.StreamWriter,
    status: str,
    body: bytes,
    more: str = "",
    length: int = 0,
    cut: int = 0,
) -> bool:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length or len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + (body[:cut] if cut else body))
    await writer.drain()
    return True


def article(key: str) -> str:
    """A textbook section that stands every check, another for each key."""
    rng = random.Random(key)
    return (
        f"# Section {key}\n\n"
        + " ".join(rng.choice(WORDS) for _ in range(120))
        + ".\n\n## End\n\nIt holds that 2 + 3 = 5."
    )


def drawn(seed: str) -> Callable[[int, dict], str]:
    """Modes by chance, as often as MODES says."""
    rng = random.Random(seed)
    return lambda number, body: rng.choices(list(MODES), weights=MODES.values())[0]


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a", buffering=1) as file:
        print(
            Server(
                drawn("".join(sys.argv[2:])), lambda entry: file.write(json.dumps(entry) + "\n")
            ).url,
            flush=True,
        )
        threading.Event().wait()
