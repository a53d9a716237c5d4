"""The convolutions that are measured: of small networks, ResNet-50 and MobileNet-V1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .problem import Array


@dataclass(frozen=True)
class Convolution:
    """N images of C channels, K kernels of R·R, padded so that stride 1 keeps the size."""

    batch: int
    inputs: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    layout: str = "NCHW"
    algo: str = "auto"

    @property
    def name(self) -> str:
        shape = f"{self.batch}, {self.inputs}, {self.size}², {self.outputs}, {self.kernel}"
        shape += f"/{self.stride}" + (f", {self.groups} groups" if self.groups > 1 else "")
        return shape + (f", {self.algo}" if self.algo != "auto" else "")

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups}

    @property
    def flops(self) -> float:
        """Of one of the three parts."""
        pixels = self.batch * self.out_size**2
        return 2.0 * pixels * self.outputs * (self.inputs // self.groups) * self.kernel**2

    @property
    def out_size(self) -> int:
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """x, w, b and the gradient by the output; images in the layout of the call."""
        rng = np.random.default_rng(1)
        depth = self.inputs // self.groups
        images, results = (
            (self.batch, channels, size, size)
            for channels, size in ((self.inputs, self.size), (self.outputs, self.out_size))
        )
        made = {
            "x": rng.standard_normal(images, np.float32),
            "w": rng.standard_normal((self.outputs, depth, self.kernel, self.kernel), np.float32),
            "b": rng.standard_normal(self.outputs, np.float32),
            "grad": rng.standard_normal(results, np.float32),
        }
        made["w"] *= (depth * self.kernel**2) ** -0.5
        if self.layout == "NHWC":
            for name in ("x", "grad"):
                made[name] = np.ascontiguousarray(np.moveaxis(made[name], 1, -1))
        return made


SMALL = [
    Convolution(32, 1, 28, 32, 3),
    Convolution(32, 32, 14, 64, 3),
    Convolution(1, 32, 8, 32, 3),
]
LARGE = [
    Convolution(16, 3, 224, 64, 7, 2),
    Convolution(16, 64, 56, 64, 3),
    Convolution(16, 64, 56, 256, 1),
    Convolution(16, 128, 28, 128, 3),
    Convolution(16, 256, 14, 256, 3),
    Convolution(16, 512, 7, 512, 3),
    Convolution(16, 128, 28, 128, 3, 1, 128),
    Convolution(16, 128, 56, 128, 3, 2),
]
RESNET = [
    Convolution(16, 64, 56, 64, 1),
    Convolution(16, 256, 56, 64, 1),
    Convolution(16, 256, 56, 128, 1),
    Convolution(16, 256, 56, 512, 1, 2),
    Convolution(16, 128, 28, 512, 1),
    Convolution(16, 512, 28, 128, 1),
    Convolution(16, 512, 28, 256, 1),
    Convolution(16, 512, 28, 1024, 1, 2),
    Convolution(16, 256, 28, 256, 3, 2),
    Convolution(16, 256, 14, 1024, 1),
    Convolution(16, 1024, 14, 256, 1),
    Convolution(16, 1024, 14, 512, 1),
    Convolution(16, 1024, 14, 2048, 1, 2),
    Convolution(16, 512, 14, 512, 3, 2),
    Convolution(16, 512, 7, 2048, 1),
    Convolution(16, 2048, 7, 512, 1),
]
# All layers of ResNet-50, each once.
RESNET_50 = [*(shape for shape in LARGE if shape.groups == 1), *RESNET]
MOBILENET = [
    Convolution(16, 3, 224, 32, 3, 2),
    Convolution(16, 32, 112, 32, 3, 1, 32),
    Convolution(16, 32, 112, 64, 1),
    Convolution(16, 64, 112, 64, 3, 2, 64),
    Convolution(16, 64, 56, 128, 1),
    Convolution(16, 128, 56, 128, 3, 1, 128),
    Convolution(16, 128, 56, 128, 1),
    Convolution(16, 128, 56, 128, 3, 2, 128),
    Convolution(16, 128, 28, 256, 1),
    Convolution(16, 256, 28, 256, 3, 1, 256),
    Convolution(16, 256, 28, 256, 1),
    Convolution(16, 256, 28, 256, 3, 2, 256),
    Convolution(16, 256, 14, 512, 1),
    Convolution(16, 512, 14, 512, 3, 1, 512),
    Convolution(16, 512, 14, 512, 1),
    Convolution(16, 512, 14, 512, 3, 2, 512),
    Convolution(16, 512, 7, 1024, 1),
    Convolution(16, 1024, 7, 1024, 3, 1, 1024),
    Convolution(16, 1024, 7, 1024, 1),
]
# Without Winograd's filtering: what the products themselves reach.
DIRECT = [
    replace(shape, algo="direct")
    for shape in (*SMALL[:2], *LARGE)
    if (shape.kernel, shape.stride, shape.groups) == (3, 1, 1) and shape.inputs > 1
]
GROUPS = {
    "Common shapes": SMALL + LARGE,
    "ResNet-50": RESNET,
    "MobileNet-V1": MOBILENET,
    "3 by 3, direct": DIRECT,
}
