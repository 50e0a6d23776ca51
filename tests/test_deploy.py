"""The files of deploy/ are whole: they parse, and name what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from streamdrop.service.daemon import Daemon
from streamdrop.service.http.metrics import render
from streamdrop.service.settings import load_daemon

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


def test_yaml_files_parse_and_the_daemon_s_is_valid(monkeypatch):
    monkeypatch.setenv("STREAMDROP_TOKEN", "sixteen letters!")
    for name in ("compose.yaml", "prometheus.yml", "grafana/datasource.yaml", "grafana/provisioning.yaml"):
        assert yaml.safe_load((DEPLOY / name).read_text())
    assert load_daemon(DEPLOY / "daemon.yaml").http.token == "sixteen letters!"
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    files = [volume.split(":")[0] for one in services.values() for volume in one["volumes"] if volume.startswith("./")]
    assert all((DEPLOY / file).exists() for file in files)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze(1)")
def test_systemd_takes_the_unit(tmp_path):
    text = (DEPLOY / "streamdrop.service").read_text()
    (tmp_path / "streamdrop.service").write_text(re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", text))
    command = ["systemd-analyze", "verify", str(tmp_path / "streamdrop.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_has_what_it_copies_and_installs_extras_that_exist():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall("(?m)^COPY (.*) [^ ]+$", text) for word in line.split()]
    assert copied
    assert all((DEPLOY.parent / name).exists() for name in copied)
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    extras = re.findall(r"'\.\[([\w,]+)\]'", text)[0].split(",")
    assert all(re.search(rf"(?m)^{extra} = \[", project) for extra in extras)


def test_the_dashboard_shows_metrics_that_exist(tmp_path):
    daemon = Daemon(load_daemon({"state": str(tmp_path)}))
    families = text_string_to_metric_families(render(daemon).decode())
    daemon.stop()
    known = {f.name + end for f in families for end in ("", "_total", "_bucket")}
    panels = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    named = {name for panel in panels for name in re.findall(r"streamdrop_\w+", panel["targets"][0]["expr"])}
    assert len(named) > 8
    assert named <= known
