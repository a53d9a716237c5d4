"""ConvLSTM on a GPU: our module and the usual cell, one convolution over cat([x, h]) a step."""

from __future__ import annotations

import copy
from typing import Any

from tbptt_fast._types import Layout

from .convlstm import Case


def modules(torch: Any, case: Case, layout: Layout) -> dict[str, Any]:
    """Ours, the usual cell with cuDNN's convolutions, and the same in float64; x is [T, B, …]."""
    import tbptt_fast.torch as ours

    torch.manual_seed(0)
    last = layout == "NHWC"
    mine = ours.ConvLSTM2d(case.inputs, case.hidden, case.kernel, layout=layout).cuda()

    class Usual(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, weight in mine.named_parameters():
                self.register_parameter(name, torch.nn.Parameter(weight.detach().clone()))

        def forward(self, x: Any) -> tuple[Any, None]:
            weight = torch.cat([self.weight_ih_l0, self.weight_hh_l0], 1)
            bias = self.bias_ih_l0 + self.bias_hh_l0
            if last:  # PyTorch's name for it is a memory format of NCHW
                weight = weight.contiguous(memory_format=torch.channels_last)
                x = x.permute(0, 1, 4, 2, 3)
            h = c = x.new_zeros(case.batch, case.hidden, case.size, case.size)
            outs = []
            for step in x:
                both = torch.cat([step, h], 1)
                gates = torch.nn.functional.conv2d(both, weight, bias, padding=case.kernel // 2)
                i, f, g, o = gates.chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outs.append(h)
            out = torch.stack(outs)
            return (out.permute(0, 1, 3, 4, 2) if last else out), None

    theirs = Usual()
    return {"ours": mine, "cuDNN": theirs, "exact": copy.deepcopy(theirs).double()}


def data(torch: Any, case: Case, layout: Layout) -> tuple[Any, Any]:
    """x and the gradient of the output."""

    def images(channels: int) -> Any:
        image = [channels, case.size, case.size]
        if layout == "NHWC":
            image = [*image[1:], channels]
        return torch.randn(case.steps, case.batch, *image, device="cuda")

    return images(case.inputs).requires_grad_(), images(case.hidden)
