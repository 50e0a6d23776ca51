"""What Learn & Drop reports: its tables and hyper-parameters as constants.

Cruciata, Cruciata, Lo Presti, van Gemert, La Cascia: Learn & drop: fast learning of CNNs based on layer dropping.
Neural Computing and Applications 36 (2024), 10839-10851, https://doi.org/10.1007/s00521-024-09592-3.
Tables 1 and 2 belong to section 4.3, Table 3 to section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1 or 2: minutes, accuracies in percent, time saved in percent as printed.

    Freezing and dropping have the same accuracy in every row of the paper.
    """

    network: str
    dataset: str
    sgd_minutes: float
    sgd_accuracy: float
    freeze_minutes: float
    accuracy: float
    freeze_saved: float
    drop_minutes: float
    drop_saved: float

    @property
    def lost(self) -> float:
        """Accuracy lost by dropping, in points."""
        return self.sgd_accuracy - self.accuracy

    @property
    def freeze_computed(self) -> float:
        """ΔT of freezing by Eq. 5 from the row's own minutes, in percent."""
        return 100.0 * (self.sgd_minutes - self.freeze_minutes) / self.sgd_minutes


@dataclass(frozen=True)
class PaperMacs:
    """A row of Table 3: millions of MACs of the forward passes, percent saved as printed."""

    network: str
    sgd: float
    drop: float
    saved: float


TABLE_1 = (
    PaperRow("VGG-11", "MNIST", 20.83, 98.64, 19.58, 98.25, 6.00, 8.74, 58.04),
    PaperRow("VGG-11", "CIFAR-10", 23.83, 92.02, 23.54, 91.72, 1.21, 8.21, 65.54),
    PaperRow("VGG-11", "Imagenette", 61.01, 75.33, 59.33, 74.08, 2.75, 18.32, 69.97),
    PaperRow("VGG-16", "MNIST", 22.54, 98.85, 21.45, 98.26, 4.24, 9.01, 60.03),
    PaperRow("VGG-16", "CIFAR-10", 26.54, 93.12, 24.94, 92.84, 6.03, 9.56, 63.98),
    PaperRow("VGG-16", "Imagenette", 74.73, 78.76, 71.21, 77.83, 4.71, 25.23, 66.24),
    PaperRow("VGG-19", "MNIST", 23.02, 98.52, 22.68, 96.22, 1.48, 9.45, 58.95),
    PaperRow("VGG-19", "CIFAR-10", 27.02, 93.10, 25.78, 91.71, 4.59, 11.53, 57.33),
    PaperRow("VGG-19", "Imagenette", 110.35, 80.32, 105.34, 78.13, 4.54, 37.76, 65.78),
)
"""All with BatchNorm (section 4.3)."""

TABLE_2 = (
    PaperRow("ResNet-18", "MNIST", 23.67, 98.2, 23.10, 97.78, 2.41, 8.64, 63.50),
    PaperRow("ResNet-18", "CIFAR-10", 27.67, 92.25, 25.97, 91.82, 6.14, 11.90, 56.99),
    PaperRow("ResNet-18", "Imagenette", 253.07, 80.12, 242.32, 79.07, 4.25, 83.78, 66.89),
    PaperRow("ResNet-50", "MNIST", 35.43, 98.75, 35.02, 96.85, 1.16, 11.23, 68.30),
    PaperRow("ResNet-50", "CIFAR-10", 38.43, 94.40, 35.40, 92.05, 7.88, 13.05, 66.04),
    PaperRow("ResNet-50", "Imagenette", 336.00, 82.78, 315.34, 80.34, 6.15, 86.28, 74.32),
    PaperRow("ResNet-101", "MNIST", 53.12, 97.81, 51.64, 95.45, 2.79, 18.56, 65.06),
    PaperRow("ResNet-101", "CIFAR-10", 56.12, 93.98, 52.03, 91.26, 7.29, 19.53, 65.20),
    PaperRow("ResNet-101", "Imagenette", 402.34, 82.23, 380.23, 80.75, 5.29, 120.44, 70.06),
    PaperRow("ResNet-152", "MNIST", 70.76, 97.43, 65.30, 95.12, 7.72, 23.34, 67.01),
    PaperRow("ResNet-152", "CIFAR-10", 74.76, 93.45, 68.93, 91.03, 7.80, 25.75, 65.56),
    PaperRow("ResNet-152", "Imagenette", 540.76, 82.65, 504.72, 79.45, 6.66, 180.34, 66.65),
)

TABLE_3 = (
    PaperMacs("VGG-11", 31203.60, 25847.02, 17.17),
    PaperMacs("VGG-16", 50311.19, 33049.44, 34.31),
    PaperMacs("VGG-19", 66000.00, 44079.31, 33.21),
    PaperMacs("ResNet-18", 1987.80, 640.53, 67.78),
    PaperMacs("ResNet-50", 4704.59, 2193.45, 53.38),
    PaperMacs("ResNet-101", 9262.2, 1667.27, 82.00),
    PaperMacs("ResNet-152", 13823.39, 2247.46, 83.74),
)
"""The paper does not say on which data set."""

MEAN_SAVED = {"vgg": 62.87, "resnet": 66.30}
"""Percent of time that dropping saves on average, per family (section 6)."""

MOST_LOST = {"vgg": 2.38, "resnet": 3.2}
"""Points of accuracy that dropping loses at most, per family, as the text has it (section 4.3)."""


def contradictions() -> list[str]:
    """Where the paper's text and tables disagree with each other: worked out from the constants above."""
    vgg = {(row.network, row.dataset): row for row in TABLE_1}
    low, high = (f(row.lost for row in TABLE_1) for f in (min, max))
    freeze = vgg["VGG-16", "MNIST"]
    saved = {row.network: row.saved for row in TABLE_3}
    least = min(TABLE_1, key=lambda row: row.drop_saved)
    smallest = f"{least.network}, {least.dataset}"
    return [
        f"Abstract: forward FLOPs fall by 17.83 % for VGG-11; Table 3: {saved['VGG-11']} %.",
        f"Text: dropping saves 58.04 % or more on VGG; Table 1: {least.drop_saved} % ({smallest}).",
        f"Text: VGGs lose 0.26 to 2.38 points; Table 1: {low:.2f} to {high:.2f}.",
        f"Text: freezing saves 3.52 % on VGG on average, and 0.40 % for VGG-16 on MNIST; Table 1: "
        f"{fmean(row.freeze_saved for row in TABLE_1):.2f} % and {freeze.freeze_saved} %, "
        f"which by its own minutes and Eq. 5 are {freeze.freeze_computed:.2f} %.",
        f"Text: the saving of FLOPs grows with depth; Table 3: VGG-19 saves less than VGG-16 ({saved['VGG-19']} "
        f"against {saved['VGG-16']} %), ResNet-50 less than ResNet-18 ({saved['ResNet-50']} against "
        f"{saved['ResNet-18']} %).",
        "Eq. 4 takes the first sign change of P'; section 3.2 and Algorithm 1 take the prefix of largest sum.",
        "Algorithm 1 drops only if n* > 1, at least two layers; section 3.3 says at least one.",
    ]
