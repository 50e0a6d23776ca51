"""Every endpoint as its OpenAPI description says, whatever comes: requests made from the description itself."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from daemons import SECONDS, until
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from small_tracker import SMALL

from streamdrop.service.daemon import Daemon
from streamdrop.service.http.app import make_app
from streamdrop.service.settings import load_daemon
from streamdrop.testing import make_folder

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
HEADERS = {"host": "127.0.0.1"}
ENDLESS = "/api/streams/{name}/live.mjpg"


class Described:
    """A daemon with a stream that is up, without a target, and the description of its API."""

    def __init__(self, root: Any) -> None:
        make_folder(root / "clip", 12)
        stream = {"name": "a", "source": str(root / "clip"), "fps": 5, "loop": True}
        limits = {"streams": 3, "retry_first": 0.1, "retry_most": 0.2}
        values = {"state": str(root / "run"), "tracker": SMALL, "roots": [str(root)], "limits": limits}
        self.config = load_daemon({**values, "streams": [stream]})
        self.daemon = Daemon(self.config)
        app = make_app(self.daemon, lambda: self.daemon.reload(self.config), lambda: False)
        box = {"box": [20, 20, 30, 30]}
        self.good = {  # bodies that chance does not find: a source that is there, a box inside the frame
            "/api/streams": {"name": "b", "source": str(root / "clip"), "fps": 5},
            "/api/streams/{name}/target": box,
            "/api/streams/{name}/targets": box,
        }
        self.schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)
        self.daemon.start()
        self.settle()

    def operations(self) -> list[Any]:
        every = [found.ok() for found in self.schema.get_all_operations()]
        return [one for one in every if one.path != ENDLESS]

    def tidy(self) -> None:
        """The stream that was configured is there, whatever the last request did; it begins anew."""
        if "a" not in [session.name for session in self.daemon.sessions()]:
            shutil.rmtree(Path(self.config.state) / "a", ignore_errors=True)
            self.daemon.reload(self.config)

    def settle(self) -> None:
        """The stream is up: a box can be drawn on it, unless it is paused."""
        self.tidy()
        until(lambda: self.daemon.get("a").status()["state"] != "starting", "the stream")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Described]:
    one = Described(tmp_path_factory.mktemp("daemon"))
    yield one
    assert one.daemon.stop(SECONDS)


def ask(described: Described, case: Any) -> int:
    response = case.call(headers=HEADERS)
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400:
        problem = response.json()
        assert problem["status"] == response.status_code
        assert all(problem[key] for key in ("title", "detail", "instance", "remedy"))
    return int(response.status_code)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_requests_made_from_the_description_are_answered_as_it_says(described, mode):
    operations, statuses, made = described.operations(), set(), 0
    assert len(operations) >= 16
    for operation in operations:
        described.settle()

        @settings(
            max_examples=10,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def every(case: Any) -> None:
            described.tidy()
            statuses.add(ask(described, case))
            if "name" in (case.path_parameters or {}):
                case.path_parameters["name"] = "a"
                statuses.add(ask(described, case))
            if mode is GenerationMode.POSITIVE and case.method == "POST" and case.path in described.good:
                case.body = described.good[case.path]
                statuses.add(ask(described, case))

        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parameters
            every()
            made += 1
    assert made >= 14
    assert {404, 422} <= statuses
    assert mode is GenerationMode.NEGATIVE or {200, 201, 204, 202} <= statuses, statuses
