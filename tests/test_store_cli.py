"""``streamdrop store`` as a user meets it, and what stands behind it: info, verify, repair, compact, export, import."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from streamdrop.cli import main
from streamdrop.errors import DataError, StoreError
from streamdrop.store import LmdbStore, store_info, verify
from streamdrop.store.examination import repair
from streamdrop.store.sources import decode_source, encode_source
from streamdrop.store.tables import SOURCES, VALUES
from streamdrop.testing.stores import assert_holds, doubled, name, samples
from streamdrop.types import SampleInfo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def run(capsys, *arguments):
    status = main(["store", *(str(a) for a in arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def filled(path, count=6, **options):
    """Samples of two streams with targets; the even ones keep a source."""
    with LmdbStore(path, **options) as store:
        infos = {name(n): SampleInfo(pinned=n == 0, stream="cam" if n % 2 else "") for n in range(count)}
        sources = {name(n): b"source %d" % n for n in range(0, count, 2)}
        store.put_many(samples(range(count)), list(range(count)), infos, sources)
    return path


def test_info_tells_lineage_sources_and_files(path, capsys):
    with LmdbStore(filled(path, compression="lz4")) as store:
        store.advance(2, doubled, "two")
        store.advance(5, doubled, "five")
        store.mark()
        store.discard([name(2)])
    status, out, err = run(capsys, "info", path, "--json")
    assert (status, err) == (0, "")
    info = json.loads(out)
    expected = {
        "cut": 5, "version": "five", "parents": [[0, ""], [2, "two"]], "compression": "lz4", "generation": 2,
        "samples": 5, "held": 1, "pinned": 1, "sources": 2, "source_bytes": 16, "streams": {"": 2, "cam": 3},
        "retention": None,
    }  # fmt: skip
    assert {key: info[key] for key in expected} == expected
    assert {"data.mdb", "values-000002.bin"} <= set(info["bytes_file"])
    assert sum(info["bytes_file"].values()) == info["bytes_on_disk"]
    assert 0 < info["bytes_live"] <= 5 * info["bytes_per_sample"]
    assert "parents" in run(capsys, "info", path)[1]


def test_info_tells_a_ranked_retention(path):
    from streamdrop.store.retention import Retention

    filled(path, retention=Retention(max_samples=3, policy="reservoir"))
    assert "reservoir" in store_info(path)["retention"]


def test_info_of_an_empty_store(path):
    LmdbStore(path).close()
    info = store_info(path)
    assert (info["samples"], info["sources"], info["parents"], info["streams"]) == (0, 0, [], {})
    assert verify(path)["problems"] == []
    assert verify(path, lambda sources: ())["note"].startswith("there was nothing to recompute")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_verify_of_a_sound_store(path, compression, capsys):
    with LmdbStore(filled(path, compression=compression)) as store:
        store.advance(1, doubled, "one")
        store.mark()
        store.discard([name(1)])
    status, out, err = run(capsys, "verify", path, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"path": str(path), "samples": 5, "held": 1, "problems": []}


def flip(path, pattern, wanted):
    """One bit of a slab changed, in a row that holds ``wanted``."""
    (file,) = path.glob(pattern)
    data = bytearray(file.read_bytes())
    data[data.index(wanted) + 1] ^= 4
    file.write_bytes(data)


def test_damaged_rows_are_named_and_repaired(path, capsys):
    filled(path)
    flip(path, "values-*.bin", torch.tensor([3, -3, 7]).numpy().tobytes())
    flip(path, "sources-*.bin", b"source 4")
    status, out, err = run(capsys, "verify", path, "--json")
    problems = json.loads(out)["problems"]
    assert (status, err.count("\n")) == (1, 1)
    assert "2 records" in err
    assert "--repair" in err
    assert [repr(name(n)) in line for n, line in zip((3, 4), problems, strict=True)] == [True, True]
    status, out, err = run(capsys, "verify", path, "--repair", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["dropped"], result["problems"], result["samples"]) == ([repr(name(3)), repr(name(4))], [], 4)
    info = store_info(path)
    assert (info["samples"], info["sources"], info["source_bytes"], info["bytes_live"]) == (4, 2, 16, 4 * 120)
    with LmdbStore(path) as store:
        assert_holds(store, [0, 1, 2, 5])
        assert store.keys(stream="cam") == [name(1), name(5)]
        store.put_many(samples([3]))
        assert_holds(store, [0, 1, 2, 5, 3])
    status, out, _ = run(capsys, "verify", path, "--repair", "--json")
    assert (status, json.loads(out)["dropped"]) == (0, [])


def test_a_damaged_record_in_the_tables(path, capsys):
    filled(path)
    file = path / "data.mdb"
    data = file.read_bytes()
    file.write_bytes(
        data.replace(b"\0cam" + name(3), b"\0cam" + name(3).upper()).replace(b"cam" + name(3), b"can" + name(3))
    )
    status, out, _ = run(capsys, "verify", path, "--json")
    assert (status, len(json.loads(out)["problems"])) == (1, 1)
    status, out, _ = run(capsys, "verify", path, "--repair")
    assert status == 0
    assert "sample 4" in out
    with LmdbStore(path) as store:
        assert_holds(store, [0, 1, 2, 4, 5])
        assert store.keys(stream="cam") == [name(1), name(5)]
        assert name(3) not in store


def junk_record(tables, state):
    tables.put_entries([(2, b"junk" * 20)])
    return state


def no_row(tables, state):
    tables.take_place(VALUES, state.generation, 2)
    return state


def lost_source(tables, state):
    place = tables.take_place(SOURCES, state.source_generation, 3)
    tables.put_places(SOURCES, state.source_generation, [(3, place._replace(checksum=1))])
    return state


def no_index(tables, state):
    tables.drop_key(name(1))
    return state


def another_s_index(tables, state):
    tables.point([(name(1), 1)])
    return state


def dangling_index(tables, state):
    tables.point([(b"stranger", 77)])
    return state


def wrong_count(tables, state):
    return replace(state, count=9)


@pytest.mark.parametrize(
    ("damage", "left"),
    [(junk_record, [0, 2, 3]), (no_row, [0, 2, 3]), (lost_source, [0, 1, 3]), (no_index, [0, 2, 3]),
     (another_s_index, [0, 2, 3]), (dangling_index, [0, 1, 2, 3]), (wrong_count, [0, 1, 2, 3])],
)  # fmt: skip
def test_every_kind_of_damage_is_found_and_repaired(path, damage, left):
    with LmdbStore(filled(path, 4)) as store:
        store.folder.change(damage)
    problems = verify(path)["problems"]
    assert problems
    assert all("\n" not in line for line in problems)
    result = repair(path)
    assert len(result["dropped"]) == 4 - len(left)
    assert verify(path)["problems"] == []
    with LmdbStore(path) as store:
        assert_holds(store, left)
        assert len(store) == len(left)
        mark = store.mark()
        store.discard([name(0)])
        store.rollback(mark)
        assert_holds(store, left)


def test_damaged_held_samples_go_too(path):
    with LmdbStore(filled(path, 4)) as store:
        mark = store.mark()
        store.discard([name(1), name(2)])
        store.folder.change(no_row)
    assert len(verify(path)["problems"]) == 1
    assert repair(path)["dropped"] == [repr(name(1))]
    assert verify(path) == {"path": str(path), "samples": 2, "held": 1, "problems": []}
    with LmdbStore(path) as store:
        store.rollback(mark)
        assert_holds(store, [0, 2, 3])


def test_repair_needs_the_writer_s_lock(path, capsys):
    with LmdbStore(filled(path)):
        status, _, err = run(capsys, "verify", path, "--repair")
    assert (status, err.count("\n")) == (1, 1)
    assert "being written" in err


@pytest.mark.parametrize("command", ["info", "verify", "compact", "export"])
def test_where_no_store_is_none_is_made(command, path, tmp_path, capsys):
    more = [tmp_path / "out.npz"] if command == "export" else ["--repair"] if command == "verify" else []
    status, _, err = run(capsys, command, path, *more)
    assert (status, err.count("\n")) == (1, 1)
    assert "holds no store" in err
    assert list(tmp_path.iterdir()) == []


def test_compact_gives_room_back(path, capsys):
    with LmdbStore(path) as store:
        store.put_many({name(n): (torch.full((5000,), float(n)),) for n in range(20)})
        store.discard([name(n) for n in range(15)])
    status, out, err = run(capsys, "compact", path, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert result["bytes_after"] < result["bytes_before"] - 100_000
    assert result["bytes_after"] == store_info(path)["bytes_on_disk"]
    with LmdbStore(path) as store:
        assert store.keys() == [name(n) for n in range(15, 20)]
        assert store.get_many([name(17)])[0].unique().tolist() == [17]


def test_export_and_import(path, tmp_path, capsys):
    with LmdbStore(filled(path)) as store:
        store.advance(3, doubled, "three")
    status, out, err = run(capsys, "export", path, tmp_path / "out.safetensors")
    assert (status, out, err) == (0, f"{tmp_path / 'out.safetensors'}\n", "")
    status, out, err = run(capsys, "import", tmp_path / "new", tmp_path / "out.safetensors", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"path": str(tmp_path / "new"), "imported": 6, "samples": 6, "cut": 3}
    with LmdbStore(tmp_path / "new") as store:
        assert_holds(store, range(6), 2)
        assert store.version == "three"
        assert store.get_sources([name(1), name(2)]) == [None, b"source 2"]


def test_export_of_one_stream(path, tmp_path, capsys):
    filled(path)
    status, out, _ = run(capsys, "export", path, tmp_path / "out.npz", "--stream", "cam", "--json")
    assert (status, json.loads(out)["files"]) == (0, [str(tmp_path / "out.npz")])
    assert "3" in run(capsys, "import", tmp_path / "new", tmp_path / "out.npz")[1]
    status, _, err = run(capsys, "export", path, tmp_path / "no.npz", "--stream", "cat")
    assert (status, err.count("\n")) == (1, 1)
    assert "'cam'" in err
    assert not (tmp_path / "no.npz").exists()


def test_imports_that_cannot_be(path, tmp_path, capsys):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 3)), labels=np.zeros(2))
    (tmp_path / "text.npz").write_text("text")
    for file, word in (("images.npz", "images, labels"), ("text.npz", "text.npz"), ("none.npz", "no such file"),
                       ("store.tar", "neither")):  # fmt: skip
        status, _, err = run(capsys, "import", path, tmp_path / file)
        assert (status, err.count("\n")) == (1, 1), err
        assert word in err
        assert not path.exists()
    filled(path)
    run(capsys, "export", path, tmp_path / "out.npz")
    with LmdbStore(path) as store:
        store.advance(1, doubled, "one")
    status, _, err = run(capsys, "import", path, tmp_path / "out.npz")
    assert (status, err.count("\n")) == (1, 1)
    assert "cut 1" in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "ACTION"),
        (["shrink", "p"], "shrink"),
        (["export", "p"], "OUT"),
        (["import", "p"], "FILE"),
        (["verify", "p", "--weights", "w.pt"], "--model"),
        (["verify", "p", "--model", "resnet18"], "--weights"),
        (["verify", "p", "--model", "resnet18", "--weights", "w", "--classes", "ten"], "ten"),
    ],
)
def test_bad_arguments(capsys, arguments, word):
    status, _, err = run(capsys, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert word in err


def test_help_needs_no_heavy_import():
    code = (
        "import sys\nfrom streamdrop.cli import main\n"
        "status = main(['store', 'verify', '--help'])\n"
        "assert not {'torch', 'numpy', 'lmdb', 'rich'} & set(sys.modules) and status == 0"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def decoded(sources):
    return (torch.stack([decode_source(source) for source in sources]) * 2,)


def recomputable(path, count=40, **options):
    """Activations that are twice their sources."""
    inputs = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(0))
    with LmdbStore(path, **options) as store:
        store.put_many(
            {name(n): (inputs[n] * 2,) for n in range(count)},
            sources={name(n): encode_source(inputs[n], "raw") for n in range(count) if n % 4},
        )
        store.put_many({b"wrong": (inputs[1],)}, sources={b"wrong": encode_source(inputs[1], "raw")})
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_samples_are_recomputed(path, dtype):
    recomputable(path, dtype=dtype)
    asked = []

    def recompute(sources):
        asked.append(sources)
        return decoded(sources)

    result = verify(path, recompute, samples=100)
    assert result["recomputed"] == 31
    assert len(result["problems"]) == 1
    assert "b'wrong'" in result["problems"][0]
    assert "differs by up to" in result["problems"][0]
    assert verify(path, recompute, samples=5)["recomputed"] == len(asked[1]) == 5
    verify(path, recompute, samples=5)
    assert asked[1] == asked[2]


def test_one_changed_bit_is_a_difference_where_the_codec_is_exact(path):
    recomputable(path)

    def nearly(sources):
        (batch,) = decoded(sources)
        return (torch.nextafter(batch, torch.tensor(torch.inf)),)

    assert verify(path, decoded, 3)["problems"] == []
    assert len(verify(path, nearly, 3)["problems"]) == 3


def test_recomputing_another_shape_is_an_error(path):
    recomputable(path)
    with pytest.raises(DataError, match=r"float32\[4\].*float32\[3, 4\]"):
        verify(path, lambda sources: (torch.zeros(len(sources), 4),))


MODEL = ("--model", "squeezenet1_1", "--classes", "3")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network with random weights in a file."""
    from safetensors.torch import save_file

    from streamdrop.evaluation.networks import build_network

    torch.manual_seed(0)
    model = build_network("squeezenet1_1", 3).eval()
    weights = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(model.state_dict(), weights)
    return model, weights


@pytest.fixture(scope="module")
def embedded(network, tmp_path_factory):
    """A store at cut 2 of the network, with raw sources."""
    from streamdrop.split import SplitModel, run_in_chunks

    model, _ = network
    inputs = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    split = SplitModel(model, inputs[:1])
    (batch,) = run_in_chunks(split.tail(2), (inputs,), 64)
    path = tmp_path_factory.mktemp("embedded") / "store"
    with LmdbStore(path) as store:
        store.advance(2, doubled, split.version(2))
        sources = {name(n): encode_source(inputs[n], "raw") for n in range(5)}
        store.put_many({name(n): (batch[n],) for n in range(5)}, sources=sources)
    return path


def test_verify_with_a_model(embedded, network, capsys):
    status, out, err = run(capsys, "verify", embedded, *MODEL, "--weights", network[1], "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"path": str(embedded), "samples": 5, "held": 0, "recomputed": 5, "problems": []}


def test_verify_with_other_weights(embedded, network, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    weights = load_file(network[1])
    weights["features.0.weight"] *= 1.01
    save_file(weights, tmp_path / "other.safetensors")
    status, out, err = run(capsys, "verify", embedded, *MODEL, "--weights", tmp_path / "other.safetensors", "--json")
    assert (status, err.count("\n")) == (1, 1)
    result = json.loads(out)
    assert len(result["problems"]) == 5
    assert "names version" in result["note"]


@pytest.mark.parametrize(
    ("sources", "status", "words"),
    [
        (None, 1, ["no raw sources", "'raw'"]),
        (np.zeros((32, 32, 3), np.uint8), 1, ["no raw sources"]),
        (torch.zeros(1, 32, 32), 1, ["SqueezeNet", "channels"]),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), 1, ["SqueezeNet", "type"]),
        (torch.zeros(3, 48, 48), 1, ["the network makes", "the store holds"]),
    ],
)
def test_sources_that_the_model_does_not_take(path, network, sources, status, words, capsys):
    with LmdbStore(path) as store:
        kind = "png" if isinstance(sources, np.ndarray) else "raw"
        kept = None if sources is None else {name(1): encode_source(sources, kind)}
        store.put_many({name(1): (torch.zeros(3),)}, sources=kept)
    got, _, err = run(capsys, "verify", path, *MODEL, "--weights", network[1])
    assert (got, err.count("\n")) == (status, 1), err
    for word in words:
        assert word in err


def test_mixed_sources_are_told(path, network, capsys):
    with LmdbStore(path) as store:
        kept = {
            name(1): encode_source(torch.zeros(3, 32, 32), "raw"),
            name(2): encode_source(np.zeros((4, 4), np.uint8)),
        }
        store.put_many({name(n): (torch.zeros(3, 32, 32),) for n in (1, 2)}, sources=kept)
    status, _, err = run(capsys, "verify", path, *MODEL, "--weights", network[1])
    assert (status, err.count("\n")) == (1, 1)
    assert "1 of 2 sources are image files" in err


def test_models_that_are_not_the_store_s(embedded, network, path, capsys):
    for arguments, status, word in (
        (("--model", "resnet1"), 2, "resnet18"),
        (("--model", "alexnet"), 1, "weights"),
        (("--model", "squeezenet1_1"), 1, "weights"),
    ):
        got, _, err = run(capsys, "verify", embedded, *arguments, "--weights", network[1])
        assert (got, err.count("\n")) == (status, 1), err
        assert word in err
    with LmdbStore(path) as store:
        store.advance(99, doubled, "far")
        store.put_many({b"a": (torch.zeros(1),)}, sources={b"a": encode_source(torch.zeros(3, 32, 32), "raw")})
    status, _, err = run(capsys, "verify", path, *MODEL, "--weights", network[1])
    assert (status, "cut 99" in err) == (1, True)


def test_a_store_that_is_promoted_while_it_is_exported(path, tmp_path):
    from streamdrop.store.exchange import export_store

    with LmdbStore(filled(path)) as store, LmdbStore(path, read_only=True) as reader:
        with pytest.raises(StoreError, match="promoted"):
            export_store(
                reader, tmp_path / "out.npz", shard_bytes=1, tell=lambda *_: store.advance(store.cut + 1, doubled, "x")
            )
        assert verify(path)["problems"] == []
