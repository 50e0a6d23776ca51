"""Every command and its arguments; imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from streamdrop._version import __version__
from streamdrop.cli.arguments import above_zero, box, names, path, whole, wholes

TRACK_EXAMPLES = """examples:
  streamdrop track video.mp4 --box 120,80,60,60 --output out.mp4
  streamdrop track frames/ --box 120,80,60,60 --boxes boxes.txt --events events.jsonl
  streamdrop track video.mp4 --box 120,80,60,60 --box 210,85,58,61 --boxes out.txt   two: out.1.txt, out.2.txt
  streamdrop track 0 --show                         camera 0, draw the box with the mouse
  streamdrop track video.mp4 --box 120,80,60,60 --output out.mp4 --store run/ --resume"""

EVALUATE_EXAMPLES = """examples:
  streamdrop evaluate sequences/ --output runs/evaluation
  streamdrop evaluate sequences/ --arms drop,fixed --peers csrt --seeds 0,1,2 --output runs/evaluation
  streamdrop evaluate sequences/ --sequences bag,bike --frames 50 --output runs/quick
  streamdrop evaluate sequences/ --arms drop --realtime 25 --perturb 3 --output runs/hard
  streamdrop evaluate MOT/train --arms drop --together --formats mot --output runs/several"""

FIT_EXAMPLES = """examples:
  streamdrop fit configs/fit/cifar10-resnet18.yaml --strategies sgd,freeze,drop --output runs/cifar10
  streamdrop fit config.yaml --set policy=prefix-sum --set epochs=8 --output runs/quick
  streamdrop fit config.yaml --set 'policy={schedule: {4: 10, 5: 19}}' --output runs/schedule
  streamdrop fit config.yaml --output runs/cifar10 --resume         go on after a kill
  streamdrop fit --sweep configs/fit/mini.yaml --output runs/mini   a grid; run again to go on"""

STORE_EXAMPLES = """examples:
  streamdrop store info run/features
  streamdrop store info run/features --json
  streamdrop store verify run/features --model resnet18 --classes 10 --weights model.safetensors
  streamdrop store compact run/features
  streamdrop store export run/features features.safetensors --stream cam1
  streamdrop store import other/features features-*.safetensors"""

SERVE_EXAMPLES = """examples:
  streamdrop serve configs/daemon.yaml
  streamdrop serve configs/daemon.yaml --set http.port=9000
  streamdrop config check configs/daemon.yaml         before you send the daemon SIGHUP"""

CONFIG_EXAMPLES = """examples:
  streamdrop config check configs/daemon.yaml
  streamdrop config check configs/basic.yaml --for track
  streamdrop config schema > daemon.schema.json      for editors that complete and check YAML"""

WEIGHTS_EXAMPLES = """examples:
  streamdrop weights list
  streamdrop weights get nanotrack-v3
  streamdrop weights add resnet18 --from Downloads/         fetched elsewhere; verified
  streamdrop weights add mine --from run/ --licence MIT     your own files, under a name"""

EXPORT_EXAMPLES = """examples:
  streamdrop export run/ tracker.onnx                      what `track --store run/` has learned
  streamdrop export run/ head.pt2 --part head              at the run's cut
  streamdrop export runs/cifar10/drop.safetensors net.onnx --model resnet18 --classes 10 --size 64"""


class _Parser(argparse.ArgumentParser):
    """Bad arguments end in one line on stderr and status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}: see {self.prog} --help\n")


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``streamdrop``; a parsed command names its ``module`` in this package and its ``function``."""
    parser = _Parser(
        prog="streamdrop",
        description="Online fine-tuning for visual tracking: learn on the stream, drop layers that stopped learning.",
    )
    parser.add_argument("--version", action="version", version=f"streamdrop {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_track(commands)
    _add_evaluate(commands)
    _add_fit(commands)
    _add_store(commands)
    _add_serve(commands)
    _add_configuration(commands)
    _add_weights(commands)
    _add_export(commands)
    return parser


def _command(commands: _Commands, name: str, text: str, examples: str, function: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(module=name, function=function)
    return parser


def _group(commands: _Commands, name: str, text: str, examples: str) -> _Commands:
    """A command of several actions, whose parsers it takes."""
    parser = commands.add_parser(
        name, help=text, description=text, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions: _Commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    return actions


def _action(actions: _Commands, name: str, help: str, text: str, module: str, function: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help, description=text)
    parser.set_defaults(module=module, function=function)
    return parser


def _add_track(commands: _Commands) -> None:
    parser = _command(
        commands, "track", "Track a target through a video, learning on the way.", TRACK_EXAMPLES, "track"
    )
    parser.add_argument("source", help="video file, folder or pattern of images, camera number, rtsp:// or http:// URL")
    again = "the target in the first frame, pixels, 0-based; again for each further target"
    parser.add_argument("--box", type=box, action="append", metavar="X,Y,W,H", help=again)
    each = "write one x,y,w,h line per frame, to - on the standard output; OUT.1.txt, OUT.2.txt, … of several targets"
    parser.add_argument("--boxes", type=path, metavar="OUT.txt", help=each)
    parser.add_argument(
        "--mot", type=path, metavar="OUT.txt", help="write boxes with ids as the MOT challenge has them"
    )
    parser.add_argument("--output", type=path, metavar="OUT.mp4", help="write the annotated video (.mp4, .mkv, .webm)")
    parser.add_argument(
        "--events", type=path, metavar="OUT.jsonl", help="write one JSON object per frame and per round"
    )
    pages = "write a self-contained report; of several targets also OUT.1.html, …"
    parser.add_argument("--report", type=path, metavar="OUT.html", help=pages)
    truth = "true boxes, one x,y,w,h line per frame: overlap in the report; one for each --box"
    parser.add_argument("--truth", type=path, action="append", metavar="FILE", help=truth)
    _add_config(parser)
    parser.add_argument("--store", type=path, metavar="DIR", help="keep the run's state here: a killed run can go on")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --store (or start it)")
    parser.add_argument("--seed", type=whole, metavar="N", help="seed of all randomness (default: the configuration's)")
    text = "keep up with so many frames a second: rounds yield to frames, and boxes depend on the clock"
    parser.add_argument("--fps", type=above_zero, metavar="N", help=text)
    parser.add_argument("--show", action="store_true", help="show the video; draw the box when --box is missing")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more, decoders' messages included")


def _add_evaluate(commands: _Commands) -> None:
    text = "One-pass evaluation on sequences with truth, arms and rivals side by side."
    parser = _command(commands, "evaluate", text, EVALUATE_EXAMPLES, "evaluate")
    parser.add_argument(
        "folder", help="sequences with truth: NAME/color/*.jpg and NAME/groundtruth.txt, or OTB, GOT-10k, LaSOT"
    )
    parser.add_argument(
        "--arms",
        type=names,
        metavar="A,B",
        help="of drop, freeze, fixed, full, none (default: all, or no arm where --peers is given)",
    )
    parser.add_argument("--peers", type=names, default=[], metavar="A,B", help="OpenCV trackers: csrt, kcf, mil, …")
    parser.add_argument(
        "--models",
        type=path,
        metavar="DIR",
        help="model files for the peers that need them: a folder, or a name of streamdrop weights",
    )
    parser.add_argument("--sequences", type=names, metavar="A,B", help="only these (default: all)")
    text = "also in real time: frames of this rate go by while a tracker is busy"
    parser.add_argument("--realtime", type=above_zero, metavar="FPS", help=text)
    text = "also from N first boxes that are up to 10 %% off"
    parser.add_argument("--perturb", type=whole, default=0, metavar="N", help=text)
    text = "follow all targets of a video in one pass (default: each by itself)"
    parser.add_argument("--together", action="store_true", help=text)
    parser.add_argument("--formats", type=names, default=[], metavar="A,B", help="result files of got10k, vot, mot too")
    parser.add_argument("--frames", type=whole, metavar="N", help="only the first N frames of each")
    parser.add_argument("--seeds", type=wholes, default=[0], metavar="0,1,2", help="one run per seed (default: 0)")
    _add_config(parser)
    parser.add_argument(
        "--output", type=path, required=True, metavar="DIR", help="results.json, boxes and the report go here"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")


def _add_fit(commands: _Commands) -> None:
    text = "Train a network on a data set by sgd, freeze and drop, side by side (the paper's experiment)."
    parser = _command(commands, "fit", text, FIT_EXAMPLES, "fit")
    parser.add_argument("config", nargs="?", help="YAML file of one experiment: see configs/fit/")
    parser.add_argument("--sweep", type=path, metavar="F", help="YAML file of a grid instead, as configs/fit/mini.yaml")
    parser.add_argument(
        "--strategies",
        type=names,
        metavar="A,B",
        help="of sgd, freeze, freeze-full, drop, sgd-same-time (default: sgd,freeze,drop, or the sweep's)",
    )
    _add_set(parser)
    parser.add_argument("--output", type=path, required=True, metavar="DIR", help="result.json and figures go here")
    parser.add_argument("--resume", action="store_true", help="go on with a killed run (a sweep always does)")
    parser.add_argument("--save-weights", action="store_true", help="write every strategy's final weights, safetensors")
    parser.add_argument("--download", action="store_true", help="fetch a data set that is missing from its publisher")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")


def _add_store(commands: _Commands) -> None:
    actions = _group(commands, "store", "Look into a feature store, tidy it, take it elsewhere.", STORE_EXAMPLES)
    _store_action(actions, "info", "what it holds", "Tell what it holds; opens read-only.", "print_info")
    text = "Tell whether every record decodes; opens read-only, but for --repair."
    verify = _store_action(actions, "verify", "whether every record decodes", text, "print_verify")
    verify.add_argument("--model", metavar="NAME", help="recompute some samples from their raw sources: resnet18, …")
    verify.add_argument(
        "--weights",
        type=path,
        metavar="F",
        help="its state dict (.safetensors or saved by torch), or a name of streamdrop weights",
    )
    verify.add_argument("--classes", type=whole, metavar="N", help="its outputs (default: 1000)")
    verify.add_argument("--repair", action="store_true", help="drop the samples that do not decode, and say which")
    text = "Give back the room of what was removed; needs room for a copy."
    _store_action(actions, "compact", "give back the room of what was removed", text, "compact")
    text = "Write the samples to one file, or to OUT-00001-of-00003… where they are many; opens read-only."
    export = _store_action(actions, "export", "write the samples to files", text, "export")
    export.add_argument("out", type=path, metavar="OUT", help="ends in .safetensors or .npz")
    export.add_argument("--stream", metavar="NAME", help="only this stream's samples")
    text = "Put exported samples into a store of the same cut and model, or into a new one."
    importing = _store_action(actions, "import", "put exported samples into it", text, "import_files")
    importing.add_argument("files", nargs="+", metavar="FILE", help="all shards of an export")


def _add_serve(commands: _Commands) -> None:
    text = "Track many streams, day and night, by one YAML file, with an HTTP API and a page."
    parser = _command(commands, "serve", text, SERVE_EXAMPLES, "serve")
    parser.add_argument("config", metavar="CONFIG.yaml", help="see configs/daemon.yaml and docs/daemon.md")
    _add_set(parser)


def _add_configuration(commands: _Commands) -> None:
    text = "Check a configuration, or describe what may stand in one."
    actions = _group(commands, "config", text, CONFIG_EXAMPLES)
    check = _action(actions, "check", "name every mistake, with its line", "Check a file.", "config", "check")
    check.add_argument("file", metavar="FILE")
    schema = _action(actions, "schema", "print the JSON Schema", "Print the JSON Schema.", "config", "schema")
    for action in (check, schema):
        action.add_argument(
            "--for", dest="kind", choices=("serve", "track"), default="serve", help="whose configuration it is"
        )


def _add_weights(commands: _Commands) -> None:
    actions = _group(commands, "weights", "Published weights by name: list, download, add your own.", WEIGHTS_EXAMPLES)
    text = "Every name, its licence, and whether it is on this machine."
    listing = _action(actions, "list", "names, licences, what is here", text, "weights", "print_list")
    listing.add_argument("--json", action="store_true", help="print JSON, with sources and digests")
    text = "Download weights (resumes what broke off, verifies the SHA-256); nothing else downloads them."
    get = _action(actions, "get", "download and verify", text, "weights", "get")
    get.add_argument("name", metavar="NAME")
    text = "Take weights from a folder: a known name's files are verified, any other name takes all of the folder's."
    add = _action(actions, "add", "take them from a folder", text, "weights", "add")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--from", dest="folder", type=path, required=True, metavar="DIR", help="holds the files")
    add.add_argument("--licence", default="unknown", metavar="TEXT", help="of weights of your own, for the list")


def _add_export(commands: _Commands) -> None:
    text = "Write a tuned model, its tail or its head as ONNX or torch.export, checked to give the same output."
    parser = _command(commands, "export", text, EXPORT_EXAMPLES, "export")
    parser.add_argument("source", metavar="SOURCE", help="a tracking run's --store folder, or a file of weights")
    parser.add_argument("out", type=path, metavar="OUT", help="ends in .onnx (pip install 'streamdrop[onnx]') or .pt2")
    parser.add_argument("--part", choices=("whole", "tail", "head"), default="whole", help="default: whole")
    parser.add_argument("--cut", type=whole, metavar="N", help="layers below the cut (default: the run's)")
    parser.add_argument("--model", metavar="NAME", help="the network that a file of weights belongs to: resnet18, …")
    parser.add_argument("--classes", type=whole, metavar="N", help="its outputs (default: 1000)")
    parser.add_argument("--size", type=whole, metavar="PX", help="side of its input images (default: 224)")
    text = "largest difference of outputs, in units of their largest value (default: 1e-4)"
    parser.add_argument("--tolerance", type=above_zero, default=1e-4, metavar="T", help=text)


def _store_action(actions: _Commands, name: str, help: str, text: str, function: str) -> argparse.ArgumentParser:
    parser = _action(actions, name, help, text, "store", function)
    parser.add_argument("path", metavar="PATH", help="the store's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=path, metavar="F", help="YAML file: see configs/basic.yaml and configs/advanced.yaml"
    )
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="override a configuration key (a.b=value)"
    )


def join_values(arguments: Sequence[str]) -> list[str]:
    """``--box -5,8,20,20`` as ``--box=-5,8,20,20``: argparse takes the first for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--box" and argument[:1] == "-" and argument[1:2] in "0123456789.":
            joined[-1] = f"--box={argument}"
        else:
            joined.append(argument)
    return joined
