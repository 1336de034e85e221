"""A light client in a process of its own: asks over connections that stay open, and says how long each answer took.

    python http_load.py < JOB.json

JOB is `port` and `pid` of the server, `path`, `headers`, `bodies` (JSON texts, asked in turn) and

* closed loop: `connections` and `requests`: each connection asks its next question when it has its answer;
* open loop: `at`, seconds from the start: each question is asked at its time, whatever else is unanswered, and its
  latency counts from that time.

Answers with one line of JSON: `milliseconds` of each request in its order, `statuses` with their counts, `seconds` of
the whole, and the processor seconds that the server and this client spent meanwhile, `server_cpu_s` and `client_cpu_s`.
"""

import asyncio
import collections
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def message(job: dict[str, Any], body: str) -> bytes:
    data = body.encode()
    headers = {"host": "127.0.0.1", "content-type": "application/json", **job["headers"], "content-length": len(data)}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {job['path']} HTTP/1.1\r\n{head}\r\n".encode() + data


async def ask(connection: Connection, data: bytes) -> int:
    """Sends a request and reads its answer to the end; returns the status."""
    reader, writer = connection
    writer.write(data)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"content-length:")
    await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
    return int(head.split(b" ", 2)[1])


async def load(job: dict[str, Any]) -> dict[str, Any]:
    messages = [message(job, body) for body in job["bodies"]]
    at = job.get("at")
    count = len(at) if at else job["requests"]
    milliseconds = [0.0] * count
    statuses: collections.Counter[int] = collections.Counter()
    free = [await connect(job) for _ in range(job["connections"])]
    began, spent = time.perf_counter(), (cpu_s(job["pid"]), time.process_time())

    async def send(number: int, connection: Connection, since: float) -> None:
        statuses[await ask(connection, messages[number % len(messages)])] += 1
        milliseconds[number] = 1000 * (time.perf_counter() - since)

    async def in_turn(connection: Connection) -> None:
        for number in numbers:
            await send(number, connection, time.perf_counter())

    async def at_its_time(number: int, seconds: float) -> None:
        connection = open_one(free) or await connect(job)
        await send(number, connection, began + seconds)
        free.append(connection)

    if at:
        tasks = []
        for number, seconds in enumerate(at):
            await asyncio.sleep(began + seconds - time.perf_counter())
            tasks.append(asyncio.create_task(at_its_time(number, seconds)))
        await asyncio.gather(*tasks)
    else:
        numbers = itertools.takewhile(lambda number: number < count, itertools.count())
        await asyncio.gather(*map(in_turn, free))
    seconds = time.perf_counter() - began
    return {
        "milliseconds": milliseconds,
        "statuses": statuses,
        "seconds": seconds,
        "server_cpu_s": cpu_s(job["pid"]) - spent[0],
        "client_cpu_s": time.process_time() - spent[1],
    }


def open_one(free: list[Connection]) -> Connection | None:
    """The one that was used last, less those that the server has closed since; None when all are waiting."""
    while free:
        reader, writer = free.pop()
        if not reader.at_eof():
            return reader, writer
        writer.close()
    return None


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, user and system, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def connect(job: dict[str, Any]) -> Connection:
    return await asyncio.open_connection("127.0.0.1", job["port"], limit=2**24)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.load(sys.stdin)))))
