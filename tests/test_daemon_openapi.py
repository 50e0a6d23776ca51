"""Every endpoint as its OpenAPI description says, whatever comes: requests made from the description itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from daemons import until
from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis import Case
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
        self.schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)
        self.daemon.start()
        until(lambda: self.daemon.get("a").status()["state"] == "waiting", "the stream")

    def tidy(self) -> None:
        """Every operation, and every second request, finds the stream that was configured."""
        if "a" not in [session.name for session in self.daemon.sessions()]:
            self.daemon.reload(self.config)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Described]:
    one = Described(tmp_path_factory.mktemp("daemon"))
    yield one
    assert one.daemon.stop(20)


@pytest.fixture(scope="module")
def schema(described: Described) -> Any:
    return described.schema.exclude(path_regex="live.mjpg")  # it has no end


api = schemathesis.pytest.from_fixture("schema")


@pytest.mark.slow
@api.parametrize()
@seed(1)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_requests_made_from_the_description_are_answered_as_it_says(case: Case, described: Described) -> None:
    described.tidy()
    for name in (None, "a"):
        if name is not None and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = name
        response = case.call(headers=HEADERS)
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            problem = response.json()
            assert problem["status"] == response.status_code
            assert all(problem[key] for key in ("title", "detail", "instance", "remedy"))
