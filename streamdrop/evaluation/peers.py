"""Rival trackers (OpenCV's), each run as a process in an environment of its own, apart from our packages."""

from __future__ import annotations

import difflib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

from streamdrop.boxes import Box
from streamdrop.errors import ConfigError, DataError, ModelError
from streamdrop.evaluation.protocol import FrameReader, Run, summarise_run
from streamdrop.evaluation.realtime import Said, realtime_run
from streamdrop.evaluation.sequences import VideoSequence
from streamdrop.pixels import Tones
from streamdrop.types import Track

PEERS = ("csrt", "kcf", "mil", "mosse", "medianflow", "nano", "vit")
MODEL_FILES = {
    "nano": ("*nano*backbone*.onnx", "*nano*head*.onnx"),
    "vit": ("*vit*.onnx",),
}
"""Network files a tracker needs, as patterns searched for in the models folder."""

ENVIRONMENT = ".venv-peers"
REMEDY = "run `make peers` in the project's folder to build it"
WORKER = Path(__file__).with_name("opencv_worker.py")


def check_peers(names: Iterable[str], python: Path | None = None, models: str | Path | None = None) -> None:
    """Refuse, before work starts, what could not run: ConfigError for an unknown name, ModelError for missing parts."""
    names = list(names)
    for name in names:
        if name not in PEERS:
            near = difflib.get_close_matches(name, PEERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(PEERS)}"
            raise ConfigError(f"no rival tracker {name!r}: {hint}")
        find_models(name, models)
    if names and python is None:
        find_python()


def find_python(folders: Sequence[Path] | None = None) -> Path:
    """The interpreter of the rivals' environment, in the working folder or beside the package; raises ModelError."""
    places = folders if folders is not None else (Path.cwd(), Path(__file__).resolve().parents[2])
    for place in places:
        for python in (place / ENVIRONMENT / "bin" / "python", place / ENVIRONMENT / "Scripts" / "python.exe"):
            if python.exists():
                return python
    raise ModelError(f"no environment {ENVIRONMENT} for rival trackers in {places[0]}: {REMEDY}")


def find_models(name: str, models: str | Path | None) -> list[str]:
    """Paths of the network files ``name`` needs, found in the ``models`` folder; raises ModelError."""
    patterns = MODEL_FILES.get(name, ())
    if patterns and models is None:
        raise ModelError(f"rival tracker {name!r} needs {' and '.join(patterns)}: give the folder that holds them")
    found = [sorted(Path(models or ".").glob(pattern)) for pattern in patterns]
    missing = [pattern for pattern, paths in zip(patterns, found, strict=True) if not paths]
    if missing:
        raise ModelError(f"rival tracker {name!r}: {models} holds no {' and no '.join(missing)}: put them there")
    return [str(paths[0]) for paths in found]


def run_peer(
    name: str,
    sequence: VideoSequence,
    python: Path | None = None,
    models: str | Path | None = None,
    on_frame: Callable[[int], None] | None = None,
    fps: float | None = None,
    first_box: Box | None = None,
) -> Run:
    """One pass of a rival over a sequence, in real time where ``fps`` is given, from the true box or ``first_box``.

    Raises ModelError when it cannot run, DataError for a bad frame.
    """
    request = {
        "tracker": name,
        "frames": [str(path) for path in sequence.frames],
        "box": list(first_box or sequence.first_box),
        "models": find_models(name, models),
        "fps": fps,
        "tones": shown_between(sequence),
    }
    said: list[Said] = []
    cpu_s = 0.0
    for answer in _answers(python or find_python(), request, len(sequence)):
        frame, ms = answer["frame"], answer["ms"]
        track = Track(frame, Box(*answer["box"]), float(answer["ok"]), not answer["ok"], ms)
        said.append(Said(answer["at"], frame, track, ms))
        cpu_s += answer["cpu_s"] if frame else 0.0
        if on_frame is not None:
            on_frame(frame)
    if fps is not None:
        return realtime_run(said, len(sequence), fps, cpu_s)
    return summarise_run([one.track for one in said], [one.ms for one in said], cpu_s)


def shown_between(sequence: VideoSequence) -> tuple[float, float]:
    """The 16-bit values that are black and white, as other trackers see them."""
    read = FrameReader()
    read(sequence.frames[0])
    tones = read.tones or Tones()
    return tones.low, tones.high


def _answers(python: Path, request: dict[str, Any], frames: int) -> Iterator[dict[str, Any]]:
    """One object per frame from the worker process, which ends with the generator."""
    command = [str(python), str(WORKER)]
    # stderr goes to a file: a pipe that nobody reads would block a talkative worker
    with tempfile.TemporaryFile("w+") as chatter:
        with subprocess.Popen(command, text=True, stdin=PIPE, stdout=PIPE, stderr=chatter) as process:
            try:
                count = 0
                for answer in _converse(process, request):
                    count = answer["frame"] + 1
                    yield answer
            finally:
                process.kill()
        if count != frames:
            chatter.seek(0)
            raise ModelError(
                f"rival tracker {request['tracker']!r} stopped after {count} of {frames} frames "
                f"({_last_line(chatter.read())}): remove {ENVIRONMENT} and run `make peers`, or leave the rival out"
            )


def _converse(process: subprocess.Popen[str], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None or not stdout.readline():  # the greeting: cv2 could be imported
        return
    stdin.write(json.dumps(request))
    stdin.close()
    for line in stdout:
        answer = json.loads(line)
        if "error" in answer:
            kind = DataError if "cannot be decoded" in answer["error"] else ModelError
            raise kind(f"rival tracker {request['tracker']!r}: {answer['error']}")
        yield answer


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:200] if text.strip() else "no message"
