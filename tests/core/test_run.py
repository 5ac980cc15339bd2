"""Runs: nothing is lost, whatever happens while a run is written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fairlead.core import run as run_module
from fairlead.core.errors import RunError
from fairlead.core.run import (
    Run,
    atomic_path,
    part_path,
    read_json,
    read_run,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_failure,
    write_json,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def start(out: Path, **options: Any) -> Run:
    values: dict[str, Any] = {"study": "test", "config": {"a": 1}, "inputs": {"data": "x"}} | options
    return Run.start(out, **values)


def test_a_finished_run_can_be_replayed(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with start(out, seed=3) as run:
        assert run.folder == part_path(out) and not out.exists()
        run.write_json("sub/menu.json", {"x": 1})
        run.finish({"lines": 2})
    assert not part_path(out).exists()
    record = read_run(out)
    assert record["study"] == "test"
    assert record["config"] == {"a": 1}
    assert record["inputs"] == {"data": "x"}
    assert record["seed"] == 3
    assert record["summary"] == {"lines": 2}
    assert record["finished"] >= record["started"]
    assert record["versions"]["python"] == sys.version.split()[0]
    assert read_json(out / "sub" / "menu.json") == {"x": 1}


def test_leaving_the_block_finishes(tmp_path: Path) -> None:
    with start(tmp_path / "r"):
        pass
    assert read_run(tmp_path / "r")["finished"]


def test_an_exception_keeps_the_part_and_the_same_run_resumes(tmp_path: Path) -> None:
    out = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt), start(out) as run:
        run.write_json("half.json", [1])
        raise KeyboardInterrupt
    assert not out.exists()
    with pytest.raises(RunError, match="repeat the same command"):
        read_run(out)
    first = json.loads((part_path(out) / "run.json").read_text())
    with start(out) as again:
        assert again.resumed
        assert read_json(again.path("half.json")) == [1]
        assert again.record["started"] == first["started"]
    assert read_json(out / "half.json") == [1]


@pytest.mark.parametrize(
    "change", [{"config": {"a": 2}}, {"inputs": {"data": "y"}}, {"seed": 1}, {"study": "other"}]
)
def test_another_run_does_not_continue_it(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "r"
    with pytest.raises(ZeroDivisionError), start(out) as run:
        run.write_json("half.json", [1])
        raise ZeroDivisionError
    with pytest.raises(RunError, match="other settings or inputs"):
        start(out, **change)
    assert (part_path(out) / "half.json").is_file(), "nothing is lost"
    with start(out, overwrite=True, **change) as run:
        assert not run.resumed
    assert not (out / "half.json").exists()


def test_resume_switched_off(tmp_path: Path) -> None:
    out = tmp_path / "r"
    with pytest.raises(ZeroDivisionError), start(out):
        raise ZeroDivisionError
    with pytest.raises(RunError, match="holds an unfinished run"):
        start(out, resume=False)
    with start(out, resume=False, overwrite=True) as run:
        assert not run.resumed


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    part = part_path(tmp_path / "r")
    part.mkdir()
    (part / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not an unfinished run"):
        start(tmp_path / "r")
    assert (part / "thesis.txt").read_text() == "mine"
    (tmp_path / "s.part").write_text("a file")
    with pytest.raises(RunError, match="not an unfinished run"):
        start(tmp_path / "s")


def test_a_run_killed_before_its_record_starts_anew(tmp_path: Path) -> None:
    part = part_path(tmp_path / "r")
    part.mkdir()
    (part / "run.json.123.tmp").write_text("{")
    with start(tmp_path / "r") as run:
        assert not run.resumed


def test_existing_runs_are_not_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "r"
    with start(out) as run:
        run.write_json("first.json", 1)
    with pytest.raises(RunError, match="exists already"):
        start(out)
    with pytest.raises(ZeroDivisionError), start(out, overwrite=True):
        raise ZeroDivisionError
    assert (out / "first.json").is_file(), "the old run stands until the new one is whole"
    with start(out, overwrite=True) as run:
        run.write_json("second.json", 2)
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "second.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".r.lock", "r"]


def test_two_runs_on_one_folder_in_one_process(tmp_path: Path) -> None:
    with start(tmp_path / "r"), pytest.raises(RunError, match="another process"):
        start(tmp_path / "r")
    with start(tmp_path / "r2"):
        pass


HOLDER = """
    import sys, time
    from fairlead.core.run import Run
    run = Run.start(sys.argv[1], study="test", config={"a": 1}, inputs={"data": "x"})
    run.write_json("half.json", [1])
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_on_one_folder_then_a_kill_then_resume(tmp_path: Path) -> None:
    out = tmp_path / "r"
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == "held"
        with pytest.raises(RunError, match="another process is writing"):
            start(out)
        with pytest.raises(RunError, match="another process is writing"):
            start(out, overwrite=True)
        assert read_json(part_path(out) / "half.json") == [1]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    with start(out) as run:
        assert run.resumed
    assert read_json(out / "half.json") == [1]


def test_a_failed_start_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        start(tmp_path / "r", config={"bad": object()})
    with start(tmp_path / "r"):
        pass


def test_a_full_disk_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", _raise(FULL))
        with pytest.raises(RunError, match=r"No space left.*free space"):
            start(tmp_path / "r")
    with start(tmp_path / "r"):
        pass


def test_a_full_disk_in_the_middle_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    with pytest.raises(RunError, match="No space left"), start(out) as run:
        run.write_json("a.json", 1)
        monkeypatch.setattr(Path, "write_bytes", _raise(FULL))
        run.write_json("b.json", 2)
    monkeypatch.undo()
    assert sorted(p.name for p in part_path(out).iterdir()) == ["a.json", "run.json"], (
        "no temporary files stay"
    )
    with start(out) as run:
        assert run.resumed


def test_a_full_disk_that_a_library_reports_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"No space left.*go on") as caught, start(tmp_path / "r"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(FileNotFoundError), start(tmp_path / "r"):
        raise FileNotFoundError(errno.ENOENT, "other trouble stays what it is")


def test_a_full_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r"
    with pytest.raises(RunError, match="No space left"), start(out) as run:
        monkeypatch.setattr(Path, "write_bytes", _raise(FULL))
        run.finish()
    monkeypatch.undo()
    assert not out.exists()
    with start(out) as run:
        assert run.resumed


def test_the_old_run_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    with start(out) as run:
        run.write_json("old.json", 1)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(source).endswith(".part"):
            raise OSError(errno.EIO, "I/O error")
        real(source, target)

    with pytest.raises(RunError, match="cannot finish"), start(out, overwrite=True) as run:
        run.write_json("new.json", 2)
        monkeypatch.setattr(run_module.os, "replace", replace)
    monkeypatch.undo()
    assert (out / "old.json").is_file()
    assert (part_path(out) / "new.json").is_file()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the run folder"):
        start(tmp_path / "file" / "r")
    with start(tmp_path / "r") as run:
        (run.folder / "x").write_text("")
        with pytest.raises(RunError, match="cannot write"):
            run.path("x/y.json")


def test_reading_what_is_no_run(tmp_path: Path) -> None:
    for content, words in (
        (None, "not a run folder"),
        ("{", "broken JSON"),
        ("[]", "not the record"),
        ("\xff", "broken"),
    ):
        folder = tmp_path / f"f{len(words)}"
        folder.mkdir(exist_ok=True)
        if content is not None:
            (folder / "run.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(RunError, match=words):
            read_run(folder)
    with pytest.raises(ZeroDivisionError), start(tmp_path / "r"):
        raise ZeroDivisionError
    with pytest.raises(RunError, match="unfinished"):
        read_run(part_path(tmp_path / "r"))


# atomic files


def _raise(error: Exception) -> Any:
    def raiser(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raiser


def test_atomic_file_and_folder(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_path(tmp_path / "f") as temporary:
            temporary.write_text(content)
        with atomic_path(tmp_path / "d") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert (tmp_path / "f").read_text() == "two"
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


@pytest.mark.parametrize("error", [FULL, ValueError("bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_what_stood_there(tmp_path: Path, error: BaseException, folder: bool) -> None:
    target = tmp_path / "x"
    if folder:
        target.mkdir()
        (target / "a").write_text("before")
    else:
        target.write_text("before")
    wanted = RunError if error is FULL else type(error)
    with pytest.raises(wanted), atomic_path(target) as temporary:
        if folder:
            temporary.mkdir()
            (temporary / "a").write_text("half")
        else:
            temporary.write_text("half")
        raise error
    assert (target / "a" if folder else target).read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_remains_of_a_killed_process_do_not_mix_in(tmp_path: Path) -> None:
    stale = tmp_path / f"d.{os.getpid()}.tmp"
    stale.mkdir()
    (stale / "stale").write_text("")
    with atomic_path(tmp_path / "d") as temporary:
        temporary.mkdir()
    assert not list((tmp_path / "d").iterdir())


def test_a_missing_input_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out") as temporary:
        temporary.write_text((tmp_path / "input").read_text())
    with pytest.raises(RunError, match="cannot write"), atomic_path(tmp_path / "out"):
        pass  # nothing was written


def test_errors_of_libraries_are_understood(tmp_path: Path) -> None:
    script = """
        import resource, signal, sys
        from pathlib import Path
        import torch
        from safetensors.torch import save_file
        from fairlead.core.errors import RunError
        from fairlead.core.run import atomic_path
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        out, tensors = Path(sys.argv[1]), {"a": torch.zeros(100_000)}
        for save in (lambda p: save_file(tensors, p), lambda p: torch.save(tensors, p)):
            try:
                with atomic_path(out / "x") as temporary:
                    save(temporary)
            except RunError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("cannot write") == 2, done.stderr
    assert "File too large" in done.stdout
    assert not list(tmp_path.iterdir())
    assert write_failure(ValueError("x")) is None


def test_json_files(tmp_path: Path) -> None:
    value = {"text": "Caf\u00e9 \U0001f600 \ud800", "nan": [1.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(RunError, match="no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(RunError, match="cannot be read"):
        read_json(tmp_path)


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 500_000)
    assert sha256_file(tmp_path / "x") == sha256_bytes(b"abc" * 500_000)
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
