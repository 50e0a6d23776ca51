"""The house's order: imports go one way, one place reads YAML, one calls backward, the public surface is pinned."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import streamdrop as sd
from streamdrop import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "streamdrop"
ORDER = [
    {"_version"},
    {"errors", "types", "boxes", "atomic", "columns", "interrupts", "nested", "pixels", "safetensors_file"},
    {"values", "config", "config_schema", "weights"},
    {"streams"},
    {"tracing"},
    {"layers", "split"},
    {"scores", "evidence", "auto", "policies"},
    {"store"},
    {
        "rounds",
        "settings",
        "costs",
        "decisions",
        "diagnosis",
        "arguments",
        "growth",
        "loss_state",
        "buffers",
        "boundary",
        "calibration",
        "cutting",
        "thawing",
        "weight_mean",
        "checkpoint",
        "feed",
        "alignment",
        "resume",
        "saving",
        "engine",
        "export",
    },
    {"tracking"},
    {"evaluation"},
    {"service"},
    {"cli", "__main__"},
    {"testing"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports(path: Path) -> set[str]:
    """Every streamdrop module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "streamdrop":
                found |= {f"streamdrop.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("streamdrop.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    level = LEVEL[own]
    for name in imports(path):
        assert LEVEL[part(name)] <= level, f"{own} imports {name}, which stands below it"


def calls(path: Path, attribute: str) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.Attribute) and node.attr == attribute for node in ast.walk(tree))


def test_the_engine_is_the_only_caller_of_backward():
    callers = {str(path.relative_to(PACKAGE)) for path in MODULES if calls(path, "backward")}
    assert callers == {"engine.py"}


def test_config_is_the_only_reader_of_yaml_and_nothing_reads_pickle():
    readers = {path.name for path in MODULES if "import yaml" in path.read_text(encoding="utf-8")}
    assert readers == {"config.py"}
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text, path
        assert "torch.load(" not in text or "weights_only=True" in text, path


def test_the_public_surface_is_what_it_says():
    assert set(sd.__all__) == {
        "Activations",
        "Batch",
        "Box",
        "FineTuner",
        "GradientScores",
        "LmdbStore",
        "MemoryStore",
        "AutoPolicy",
        "PaperPolicy",
        "ThawPlan",
        "PrefixSumPolicy",
        "Recorder",
        "Retention",
        "RoundReport",
        "Sample",
        "SampleInfo",
        "SchedulePolicy",
        "Session",
        "SplitModel",
        "StreamdropError",
        "TieredStore",
        "Targets",
        "Track",
        "Tracker",
        "__version__",
        "best_prefix",
        "decode_source",
        "encode_source",
        "first_crossing",
        "open_stream",
        "parse_box",
        "read_ahead",
        "standardise",
        "track",
        "transformer_blocks",
    }
    for name in sd.__all__:
        assert getattr(sd, name) is not None
    with pytest.raises(AttributeError):
        sd.nonsense  # noqa: B018


def test_every_error_stands_in_the_tree_and_its_drawing():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    for kind in kinds:
        assert issubclass(kind, sd.StreamdropError)
        assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("command", [["--help"], ["track", "--help"], ["--version"]])
def test_help_needs_no_heavy_import(command):
    code = (
        "import sys\nfrom streamdrop.cli import main\n"
        f"status = main({command!r})\n"
        "heavy = {'torch', 'cv2', 'numpy', 'av', 'matplotlib', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy and status == 0, (heavy, status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
