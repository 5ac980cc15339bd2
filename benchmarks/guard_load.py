"""Load on `fairlead guard serve`: 64 concurrent streams on loopback, each compared with its offline result, among clients that misbehave.

    python -m benchmarks.guard_load [--minutes 5] [--streams 64] [--probe FOLDER] [--json] [--publish guard_load]

The server runs in a process of its own, through the command line, and is stopped with SIGTERM while streams are open. Every stream's text
and tokens are compared with what `Guard.answer` gives for the same question, policy and seed; scores may differ by rounding. Besides:
clients that vanish in the middle (or before the first byte), slow readers (whose answers are compared too), malformed and hostile
requests (each must get a 4xx). At the end: what the audit log holds against what was received, the server's own counts, its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from benchmarks.bench_guard import make_guard
from benchmarks.summary import write_table
from fairlead.core.site import Site
from fairlead.guard import Guard, Policy
from fairlead.guard.audit import read_audit
from fairlead.models import load_model
from fairlead.organisms import World
from fairlead.probes import Probe

NUM_REQUESTS = 240
SCORE_TOLERANCE = 1e-3


class Case(NamedTuple):
    """A request and what its stream must say."""

    body: dict[str, Any]
    text: str
    tokens: tuple[str, ...]
    scores: tuple[float | None, ...]


class Found(NamedTuple):
    """What came back."""

    status: int
    text: str
    tokens: list[str]
    scores: list[float | None]
    id: str
    first: float
    done: bool


def make_cases(guard: Guard) -> list[Case]:
    """Questions of the pocket world under all policies, greedy and sampled, with their offline answers."""
    items = World().items("fact", NUM_REQUESTS, seed=7, split="any", phrasing="any")
    kinds = ("observe", "correct", "retract", "flag", "abort")
    cases = []
    for place, item in enumerate(items):
        kind, temperature = kinds[place % 5], float(place % 2)
        options = {"policy": kind, "then": "go_on"} if kind == "retract" else {"policy": kind}
        policy = Policy.make({key: value for key, value in options.items() if key != "policy"}, kind=kind)
        answer = guard.answer(
            [item.question], policy=policy, temperature=temperature, seed=place, max_new_tokens=64
        )[0]
        body = {
            "model": "pocket",
            "messages": [{"role": "user", "content": item.question}],
            "temperature": temperature,
            "seed": place,
            "max_tokens": 64,
            "stream": True,
            "fairlead": options,
        }
        cases.append(Case(body, answer.text, answer.tokens, answer.scores))
    return cases


def as_bytes(body: bytes, path: str = "/v1/chat/completions") -> bytes:
    """A POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def ask(port: int, case: Case, *, pause: float = 0.0, chunk: int = 65536) -> Found:
    """One stream, read to its end; slowly where asked."""
    begun, first = time.monotonic(), 0.0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(as_bytes(json.dumps(case.body).encode()))
    data = b""
    try:
        while part := await reader.read(chunk):
            first = first or time.monotonic() - begun
            data += part
            if pause:
                await asyncio.sleep(pause)
    finally:
        writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head else 0
    body = unchunk(body) if b"chunked" in head.lower() else body
    text, tokens, scores, name = "", [], [], ""
    for line in body.decode().split("\n\n"):
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        name = event.get("id", "")
        for choice in event.get("choices", []):
            text += choice["delta"].get("content", "")
            for token in (choice.get("fairlead") or {}).get("tokens") or []:
                tokens.append(token["text"])
                scores.append(token["score"])
    return Found(status, text, tokens, scores, name, first, body.endswith(b"data: [DONE]\n\n"))


def unchunk(data: bytes) -> bytes:
    """The body of a chunked response."""
    found = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        if not length:
            break
        found, data = found + rest[:length], rest[length + 2 :]
    return found


class Tally:
    """Counts of a run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.first: list[float] = []

    def check(self, case: Case, found: Found, kind: str) -> None:
        """Compare a stream with its offline result."""
        self.counts[f"{kind}_status_{found.status}"] += 1
        if found.status != 200:
            return
        same = found.done and found.text == case.text and tuple(found.tokens) == case.tokens
        if same:
            pairs = zip(found.scores, case.scores, strict=True)
            same = all(
                (one is None) == (two is None)
                and (one is None or two is None or abs(one - two) < SCORE_TOLERANCE)
                for one, two in pairs
            )
        self.counts[f"{kind}_same" if same else f"{kind}_DIFFERENT"] += 1
        self.counts["tokens"] += len(found.tokens)
        self.ids.append(found.id)
        self.first.append(found.first)
        if not same and len(self.wrong) < 10:
            self.wrong.append({"body": case.body, "want": case.text, "got": found.text, "done": found.done})


async def good_client(port: int, cases: list[Case], tally: Tally, until: float, rng: random.Random) -> None:
    while time.monotonic() < until:
        case = rng.choice(cases)
        tally.check(case, await ask(port, case), "stream")


async def slow_client(port: int, cases: list[Case], tally: Tally, until: float, rng: random.Random) -> None:
    while time.monotonic() < until:
        case = rng.choice(cases)
        tally.check(case, await ask(port, case, pause=0.05, chunk=256), "slow")


async def vanishing_client(
    port: int, cases: list[Case], tally: Tally, until: float, rng: random.Random
) -> None:
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = {**rng.choice(cases).body, "stream": rng.random() < 0.7}
        data = as_bytes(json.dumps(body).encode())
        cut = rng.choice((len(data), len(data), rng.randrange(len(data))))
        writer.write(data[:cut])
        await writer.drain()
        if cut == len(data) and rng.random() < 0.6:
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(rng.randrange(1, 2000)), rng.random())
        writer.transport.abort() if rng.random() < 0.5 else writer.close()
        tally.counts["vanished"] += 1
        await asyncio.sleep(rng.random() * 0.2)


HOSTILE = (
    b"{",
    b"[" * 50_000,
    b'{"a":' * 20_000,
    b"\xff\xfe\x00\x01",
    b'{"model": "pocket", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "pocket", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    b'{"model": "pocket", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1e9}',
    b'{"model": "nobody", "messages": [{"role": "user", "content": "a"}]}',
    json.dumps({"model": "pocket", "messages": [{"role": "user", "content": "x " * 20_000}]}).encode(),
    json.dumps({"model": "pocket", "messages": [{"role": "user", "content": "a"}], "n": 128}).encode(),
    json.dumps({"model": "pocket", "messages": [{"role": "user", "content": "a"}] * 5000}).encode(),
    b"x" * 1_200_000,
)
RAW = (
    b"GARBAGE\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcde",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /v1/models/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
)


async def hostile_client(port: int, tally: Tally, until: float, rng: random.Random) -> None:
    while time.monotonic() < until:
        data = as_bytes(rng.choice(HOSTILE)) if rng.random() < 0.6 else rng.choice(RAW)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            await writer.drain()
            head = await asyncio.wait_for(reader.read(200), 20)
            status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0
            tally.counts["hostile_refused" if 400 <= status < 500 else f"hostile_{status}"] += 1
        except (
            ConnectionError,
            TimeoutError,
        ) as error:  # refused with the rest of the body unread: the peer may reset
            tally.counts[f"hostile_{type(error).__name__}"] += 1
        finally:
            writer.close()
        await asyncio.sleep(0.05)


async def drive(port: int, cases: list[Case], *, seconds: float, streams: int, tally: Tally) -> None:
    """All clients at once."""
    until = time.monotonic() + seconds
    work = [good_client(port, cases, tally, until, random.Random(place)) for place in range(streams)]
    work += [slow_client(port, cases, tally, until, random.Random(1000 + place)) for place in range(3)]
    work += [vanishing_client(port, cases, tally, until, random.Random(2000 + place)) for place in range(3)]
    work += [hostile_client(port, tally, until, random.Random(3000 + place)) for place in range(2)]
    await asyncio.gather(*work)


async def at_shutdown(port: int, cases: list[Case], server: subprocess.Popen, tally: Tally) -> None:
    """SIGTERM while streams are open: they are finished."""
    tasks = [asyncio.create_task(ask(port, case)) for case in cases[:16]]
    await asyncio.sleep(0.3)
    server.send_signal(signal.SIGTERM)
    for case, found in zip(cases[:16], await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(found, Found):
            tally.check(case, found, "shutdown")
        else:
            tally.counts[f"shutdown_{type(found).__name__}"] += 1


def memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def start_server(folder: Path, probe: str, threshold: float) -> tuple[subprocess.Popen, int]:
    """The server through the command line, on a free port."""
    words = [
        sys.executable,
        *"-m fairlead.cli guard serve organism:pocket --name pocket".split(),
        "--probe",
        probe,
    ]
    words += ["--threshold", repr(threshold), "--port", "0", "--log", str(folder / "audit.jsonl"), "--json"]
    words += ["--max-waiting", "512", "--device", "cpu"]
    said = folder / "stderr.txt"
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=open(said, "w"), text=True)  # noqa: SIM115
    while server.poll() is None:
        for line in said.read_text().splitlines():
            if "is served at" in line:
                return server, int(line.split("/v1")[0].rsplit(":", 1)[1])
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {said.read_text()}")


def run(minutes: float, streams: int, probe: str | None) -> dict[str, Any]:
    """The whole test; its counts."""
    torch.set_num_threads(1)
    model, tally = load_model("organism:pocket"), Tally()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if probe is None:
            readout: Any = make_guard(model, None).readout
            Probe(readout.readout.direction, 0.0, "logistic", model_fingerprint=model.fingerprint).save(
                folder / "probe"
            )
            probe = str(folder / "probe")
        plain = make_guard(model, probe)
        assert all(isinstance(site, Site) for site in plain.readout.sites)
        items = World().items("fact", 100, seed=3, split="any")
        scores = sorted(a.worst for a in plain.answer([item.question for item in items]))
        threshold = float(scores[60])
        cases = make_cases(Guard(model, plain.readout, threshold=threshold))
        server, port = start_server(folder, probe, threshold)
        try:
            asyncio.run(drive(port, cases, seconds=3, streams=8, tally=Tally()))
            before = memory(server.pid)
            begun = time.monotonic()
            asyncio.run(drive(port, cases, seconds=60 * minutes, streams=streams, tally=tally))
            seconds = time.monotonic() - begun
            after = memory(server.pid)
            metrics = asyncio.run(_get(port, "/metrics"))
            asyncio.run(at_shutdown(port, cases, server, tally))
            asked = time.monotonic()
            out, _ = server.communicate(timeout=120)
            stopping = time.monotonic() - asked
        finally:
            server.kill()
        err = (folder / "stderr.txt").read_text()
        records, damage = read_audit(folder / "audit.jsonl")
        logged = Counter(record.data["id"] for record in records if record.kind == "answer")
        missing = sum(logged[one] != 1 for one in tally.ids)
    first = np.array(tally.first)
    return {
        "seconds": round(seconds, 1),
        "streams_at_once": streams,
        **dict(sorted(tally.counts.items())),
        "tokens_per_second": round(tally.counts["tokens"] / seconds, 1),
        "first_byte_seconds": {
            "median": round(float(np.median(first)), 3),
            "p99": round(float(np.quantile(first, 0.99)), 3),
        },
        "not_once_in_the_audit_log": missing,
        "audit_damage": len(damage),
        "server_memory_mb": {"before": round(before), "after": round(after)},
        "shutdown_seconds": round(stopping, 1),
        "server": {**json.loads(out), "exit": server.returncode},
        "server_stderr": err.strip().splitlines()[-40:],
        "responses_5xx": sum(
            float(x.rsplit(" ", 1)[1]) for x in metrics.splitlines() if 'status="5' in x and "_total" in x
        ),
        "wrong": tally.wrong,
    }


def publish(name: str, found: dict[str, Any]) -> None:
    """Write the table: what was asked of the server, and what came of it."""
    refused = found.get("hostile_refused", 0)
    odd = sum(number for key, number in found.items() if key.startswith("hostile_")) - refused
    rows = [
        ("streams, equal to their offline result", _of(found, "stream")),
        ("slow readers, equal to their offline result", _of(found, "slow")),
        ("streams open at SIGTERM, finished and equal", _of(found, "shutdown")),
        ("clients that vanished", f"{found['vanished']:,}"),
        ("hostile requests refused with 4xx", f"{refused:,} of {refused + odd:,}"),
        ("responses 5xx", f"{found['responses_5xx']:.0f}"),
        ("answers not exactly once in the audit log", f"{found['not_once_in_the_audit_log']}"),
        ("tokens a second", f"{found['tokens_per_second']:,.0f}"),
        ("first byte, seconds: median and 99th percentile", "{median:.2f} and {p99:.2f}".format(**found["first_byte_seconds"])),
        ("server's memory, MB: after 3 s of 8 streams, and at the end", "{before} and {after}".format(**found["server_memory_mb"])),
    ]  # fmt: skip
    write_table(
        name,
        title="The server under load",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=f"python -m benchmarks.guard_load --minutes {found['seconds'] / 60:.0f} --probe runs/probe",
        columns=[("found", "found")],
        rows=[{"title": title, "cells": {"found": text}} for title, text in rows],
        notes=[
            f"{found['streams_at_once']} streams at a time on loopback for {found['seconds'] / 60:.0f} minutes, server and clients on "
            f"the same {os.cpu_count()} cores; besides 3 slow readers, 3 clients that vanish and 2 hostile ones."
            " Equal: text, tokens and scores."
        ],
    )


def _of(found: dict[str, Any], kind: str) -> str:
    asked = sum(number for key, number in found.items() if key.startswith(f"{kind}_status_"))
    return f"{found.get(f'{kind}_same', 0):,} of {asked:,}"


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    data = (await reader.read(-1)).decode()
    writer.close()
    return data


def main() -> None:
    """Print the counts; exit with 1 where a stream was lost or crossed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument(
        "--probe", help="folder of a probe of the pocket model; a random direction by default"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    options = parser.parse_args()
    found = run(options.minutes, options.streams, options.probe)
    if options.publish:
        publish(options.publish, found)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:28} {value}")
    bad = [name for name in found if "DIFFERENT" in name] + (
        ["audit"] if found["not_once_in_the_audit_log"] else []
    )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
