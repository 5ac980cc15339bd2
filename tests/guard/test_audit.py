"""The audit log: what was written is read back, damage is seen, and a kill at any moment loses at most the last record."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from fairlead.core.errors import RunError
from fairlead.guard.audit import AuditLog, Damage, iter_audit, read_audit

WRITER = """
import os, sys
from fairlead.guard.audit import AuditLog
log = AuditLog(sys.argv[1], sync=sys.argv[2])
print("ready", flush=True)
place = 0
while True:
    number = log.write("answer", {"text": "x" * (place * 997 % 50_000), "place": place})
    os.write(1, b"%d\\n" % number)  # the record was promised
    place += 1
"""


def test_what_was_written_is_read_back_and_a_log_goes_on(tmp_path):
    path = tmp_path / "deep" / "audit.jsonl"
    for start in (0, 3):
        with AuditLog(path, sync="always") as log:
            assert [log.write("answer", {"text": f"{n}\u20ac\n\ud800"}) for n in range(3)] == [
                start,
                start + 1,
                start + 2,
            ]
    records, damage = read_audit(path)
    assert [r.number for r in records] == list(range(6)) and not damage
    assert records[4].data == {"text": "1\u20ac\n\ud800"} and records[4].kind == "answer"
    assert path.stat().st_mode & 0o077 == 0, "prompts of users are for the owner's eyes"


def test_one_process_writes(tmp_path):
    with AuditLog(tmp_path / "a"), pytest.raises(RunError, match="another process"):
        AuditLog(tmp_path / "a")
    AuditLog(tmp_path / "a").close()
    with pytest.raises(RunError, match="no such log"):
        list(iter_audit(tmp_path / "b"))


def test_damage_is_seen_and_the_rest_is_read(tmp_path):
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        for n in range(6):
            log.write("answer", {"n": n})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"n": 1', b'"n": 7')  # changed
    del lines[3]  # removed
    path.write_bytes(b"".join(lines)[:-5])  # torn
    records, damage = read_audit(path)
    assert [r.number for r in records] == [0, 2, 4]
    assert [d.line for d in damage] == [2, 3, 4, 5]
    assert "checksum" in damage[0].reason and "record 2 follows where 1" in damage[1].reason
    assert damage[3] == Damage(5, "torn: the writer was killed here")


def test_threads_do_not_mix_their_records(tmp_path):
    with AuditLog(tmp_path / "a", sync="never") as log:
        threads = [
            threading.Thread(
                target=lambda n=n: [log.write("x", {"who": n, "pad": "y" * 5000}) for _ in range(50)]
            )
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records, damage = read_audit(tmp_path / "a")
    assert not damage and sorted(r.data["who"] for r in records) == sorted(list(range(6)) * 50)


@pytest.mark.parametrize("sync", ["never", "always"])
def test_a_kill_at_any_moment_loses_at_most_the_record_being_written(tmp_path, sync):
    path, rng, promised = tmp_path / "audit.jsonl", random.Random(0), -1
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), sync],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        told = writer.stdout.read().split("\n")[:-1]
        writer.wait()
        promised = int(told[-1]) if told else promised
        records, damage = read_audit(path)
        numbers = [r.number for r in records]
        assert numbers == list(range(len(numbers))), "no gap"
        assert len(numbers) - 1 in (promised, promised + 1), (
            "what was promised is there, and at most one more"
        )
        assert all(item.reason.startswith("torn") for item in damage) and len(damage) <= 1
        for record in records:
            assert record.data["text"] == "x" * (record.data["place"] * 997 % 50_000)


def test_a_torn_line_is_cut_off_by_the_next_writer_wherever_it_was_torn(tmp_path):
    """Every possible place of a tear in the last record."""
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.write("a", {"n": 0})
        size = path.stat().st_size
        log.write("a", {"n": 1})
    whole = path.read_bytes()
    for cut in range(size + 1, len(whole)):
        path.write_bytes(whole[:cut])
        records, damage = read_audit(path)
        assert [r.number for r in records][:1] == [0]
        assert len(records) + len(damage) == 2
        with AuditLog(path) as log:
            assert log.write("a", {"n": 2}) == 1
        records, damage = read_audit(path)
        assert [r.data["n"] for r in records] == [0, 2] and not damage
