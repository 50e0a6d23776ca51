"""What is refused, or fails half way, leaves the daemon and its files as they were."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from daemons import SECONDS
from small_tracker import SMALL

from streamdrop.errors import ConfigError, OutputError
from streamdrop.service.daemon import Daemon
from streamdrop.service.recorder import Recorder
from streamdrop.service.serve import Server
from streamdrop.service.settings import StreamConfig, load_daemon, load_stream
from streamdrop.service.stream_session import StreamSession
from streamdrop.service.track_run import TrackRun


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(configured(tmp_path))
    yield one
    assert one.stop(SECONDS)


def configured(root: Path, **changes: Any) -> Any:
    return load_daemon({"state": str(root / "run"), "tracker": SMALL, **changes})


def stream(root: Path, **changes: Any) -> StreamConfig:
    return load_stream({"name": "x", "source": str(root / "missing"), **changes})


def kept(root: Path) -> list[str]:
    """Names of the streams that the next start will have."""
    path = root / "run" / "streams.json"
    return [one["name"] for one in json.loads(path.read_text())] if path.exists() else []


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_reload_that_an_added_stream_does_not_fit_changes_nothing(tmp_path, daemon):
    daemon.add(stream(tmp_path, tracker={"strategy": "freeze"}))
    before, session = daemon.config, daemon.get("x")
    with pytest.raises(ConfigError, match="freeze cannot try"):
        daemon.reload(configured(tmp_path, roots=["/b"], tracker={**SMALL, "drop": {"policy": "if-it-pays"}}))
    assert daemon.config is before
    assert daemon.get("x") is session
    assert daemon.reload(configured(tmp_path, roots=["/b"]))["unchanged"] == ["x"]
    assert daemon.config.roots == ("/b",)


def test_a_reload_changes_how_many_compute_at_once_and_touches_no_stream(tmp_path, daemon):
    daemon.add(stream(tmp_path))
    session = daemon.get("x")
    for workers in (3, 1):
        done = daemon.reload(configured(tmp_path, limits={"workers": workers, "streams": 5}))
        assert (daemon.share.slots, done["unchanged"]) == (workers, ["x"])
    assert daemon.get("x") is session
    assert daemon.reload(configured(tmp_path, limits={"save_rounds": 2}))["restarted"] == ["x"]


def test_streams_of_a_reload_end_all_at_once_and_one_that_cannot_begin_again_keeps_no_other(
    tmp_path, daemon, monkeypatch
):
    for name in ("x", "y"):
        daemon.add(stream(tmp_path, name=name))
    told: list[str] = []
    for word in ("stop", "join"):
        note = _noting(told, word, getattr(StreamSession, word))
        monkeypatch.setattr(StreamSession, word, note)

    def some(settings: Any, *given: Any) -> StreamSession:
        if settings.stream.name == "x":
            raise OutputError("no room for x: free some space")
        return StreamSession(settings, *given)

    fewer = configured(tmp_path, limits={"save_rounds": 2})
    with monkeypatch.context() as disk:
        disk.setattr("streamdrop.service.daemon.StreamSession", some)
        with pytest.raises(OutputError, match="no room for x"):
            daemon.reload(fewer)
    assert told.index("join") >= 2  # both were told to stop
    assert daemon.get("y").settings.limits.save_rounds == 2
    done = daemon.reload(fewer)
    assert (done["restarted"], done["unchanged"]) == (["x"], ["y"])


def _noting(told: list[str], word: str, method: Any) -> Any:
    def noted(*given: Any) -> Any:
        told.append(word)
        return method(*given)

    return noted


def test_a_stream_that_cannot_be_kept_is_not_started(tmp_path, daemon, monkeypatch):
    with monkeypatch.context() as disk:
        disk.setattr("streamdrop.service.daemon.replace_text", full)
        with pytest.raises(OutputError, match="free some space"):
            daemon.add(stream(tmp_path))
    assert daemon.sessions() == []
    daemon.add(stream(tmp_path))
    assert kept(tmp_path) == ["x"]


def test_a_stream_that_cannot_be_started_is_not_kept(tmp_path, daemon, monkeypatch):
    blocker = tmp_path / "run" / "x"
    blocker.write_text("a file")
    with pytest.raises(OutputError, match="choose another"):
        daemon.add(stream(tmp_path))
    assert (daemon.sessions(), kept(tmp_path)) == ([], [])
    blocker.unlink()
    with monkeypatch.context() as machine:
        machine.setattr(StreamSession, "start", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            daemon.add(stream(tmp_path))
    assert (daemon.sessions(), kept(tmp_path)) == ([], [])
    daemon.add(stream(tmp_path))
    assert kept(tmp_path) == ["x"]


def test_a_stream_whose_removal_cannot_be_kept_goes_on(tmp_path, daemon, monkeypatch):
    session = daemon.add(stream(tmp_path))
    with monkeypatch.context() as disk:
        disk.setattr("streamdrop.service.daemon.replace_text", full)
        with pytest.raises(OutputError, match="free some space"):
            daemon.remove("x", purge=True)
    assert daemon.get("x") is session
    assert session.status()["state"] != "stopped"
    daemon.remove("x", purge=True)
    assert (daemon.sessions(), kept(tmp_path)) == ([], [])


def test_where_the_daemon_answers_is_told_whole_or_as_it_was(tmp_path, daemon, monkeypatch):
    told = tmp_path / "run" / "daemon.json"
    server = SimpleNamespace(daemon=daemon, http=SimpleNamespace(address="http://127.0.0.1:1"))
    Server._tell_where(server)
    before = json.loads(told.read_text())
    assert before["address"] == "http://127.0.0.1:1"
    server.http.address = "http://127.0.0.1:2"
    with monkeypatch.context() as disk:
        disk.setattr("streamdrop.atomic.os.fsync", full)
        with pytest.raises(OutputError, match="free some space"):
            Server._tell_where(server)
    assert json.loads(told.read_text()) == before
    assert not told.with_name("daemon.json.new").exists()


def test_a_run_that_a_full_disk_kept_from_starting_can_be_started(tmp_path):
    """What a run began with is written whole or not at all: half of it would pass for an earlier run."""

    def start() -> None:
        TrackRun(Recorder([]), None, (1, 1, 4, 4), started={"source": "x" * 100}, state=tmp_path / "state")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OutputError, match="choose another folder"):
            start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    start()
    assert json.loads((tmp_path / "state" / "run.json").read_text()) == {"source": "x" * 100}
