"""Progress must never stop the work it reports on."""

import pytest

from fairlead.core import progress


def test_a_meter_that_has_counted_nothing_yet_reports_without_failing(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    meter = progress.Meter("work", 20, "step")
    meter.advance(0)
    meter.advance(10)
    meter.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("work: 0") and "left" not in lines[0]
    assert "10 of 20" in lines[1] and "s left" in lines[1]


def test_track_yields_every_item_and_is_silent_when_asked(capsys):
    with progress.quiet():
        assert list(progress.track([1, 2, 3], "work")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_track_passes_errors_on():
    with pytest.raises(RuntimeError, match="inside"):
        for _ in progress.track([1], "work"):
            raise RuntimeError("inside")
