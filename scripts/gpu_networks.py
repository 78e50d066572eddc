"""Networks with random weights for the benchmarks on a GPU: a torch module and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Inputs = tuple[Any, ...]
Network = tuple[Any, Callable[[int], Inputs]]
"""A module in float32 on the CPU, and its inputs by seed."""


def _vision(name: str, size: int = 224) -> Callable[[int], Network]:
    """A timm network."""

    def make(batch: int) -> Network:
        import timm
        import torch

        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        return model, lambda seed: (images(batch, size, seed),)

    return make


def images(batch: int, size: int, seed: int) -> Any:
    """Normal float32 [batch, 3, size, size]."""
    import torch

    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _tokens(batch: int, length: int, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 30000, (batch, length), generator=generator)


def _bert(batch: int) -> Network:
    """BERT-base, 128 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(), add_pooling_layer=False).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.inner(input_ids=ids, attention_mask=mask).last_hidden_state

    def inputs(seed: int) -> Inputs:
        ids = _tokens(batch, 128, seed)
        return ids, torch.ones_like(ids)

    return Hidden().eval(), inputs


def _gpt2(batch: int) -> Network:
    """GPT-2's prefill of 512 tokens."""
    import torch
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(use_cache=False)).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Any) -> Any:
            mask = torch.ones_like(ids)  # told, it looks for no packed sequences
            result = self.inner(input_ids=ids, attention_mask=mask, use_cache=False)
            return result.last_hidden_state

    return Hidden().eval(), lambda seed: (_tokens(batch, 512, seed),)


def _detector(batch: int) -> Network:
    """A detector like YOLOv8-s at 640 x 640: split blocks, pooling pyramid, three scales."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Conv(nn.Sequential):
        def __init__(self, inner: int, out: int, kernel: int = 1, stride: int = 1) -> None:
            conv = nn.Conv2d(inner, out, kernel, stride, kernel // 2, bias=False)
            super().__init__(conv, nn.BatchNorm2d(out), nn.SiLU())

    class Split(nn.Module):
        def __init__(self, inner: int, out: int, count: int, residual: bool) -> None:
            super().__init__()
            self.half, self.residual = out // 2, residual
            self.first, self.last = Conv(inner, out), Conv((2 + count) * self.half, out)
            self.rest = nn.ModuleList(
                nn.Sequential(Conv(self.half, self.half, 3), Conv(self.half, self.half, 3))
                for _ in range(count)
            )

        def forward(self, x: Any) -> Any:
            parts = list(self.first(x).chunk(2, 1))
            for block in self.rest:
                y = block(parts[-1])
                parts.append(parts[-1] + y if self.residual else y)
            return self.last(torch.cat(parts, 1))

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            c = (32, 64, 128, 256, 512)
            self.stem = nn.Sequential(Conv(3, c[0], 3, 2), Conv(c[0], c[1], 3, 2))
            self.s1 = Split(c[1], c[1], 1, True)
            self.s2 = nn.Sequential(Conv(c[1], c[2], 3, 2), Split(c[2], c[2], 2, True))
            self.s3 = nn.Sequential(Conv(c[2], c[3], 3, 2), Split(c[3], c[3], 2, True))
            self.s4 = nn.Sequential(Conv(c[3], c[4], 3, 2), Split(c[4], c[4], 1, True))
            self.before, self.after = Conv(c[4], c[3]), Conv(4 * c[3], c[4])
            self.pool, self.up = nn.MaxPool2d(5, 1, 2), nn.Upsample(scale_factor=2)
            self.up1 = Split(c[4] + c[3], c[3], 1, False)
            self.up2 = Split(c[3] + c[2], c[2], 1, False)
            self.down1, self.down2 = Conv(c[2], c[2], 3, 2), Conv(c[3], c[3], 3, 2)
            self.out1 = Split(c[3] + c[2], c[3], 1, False)
            self.out2 = Split(c[4] + c[3], c[4], 1, False)
            self.heads = nn.ModuleList(
                nn.Sequential(Conv(i, 64, 3), Conv(64, 64, 3), nn.Conv2d(64, 144, 1))
                for i in (c[2], c[3], c[4])
            )

        def forward(self, image: Any) -> Any:
            a = self.s2(self.s1(self.stem(image)))
            b = self.s3(a)
            x = self.before(self.s4(b))
            pools = [x]
            for _ in range(3):
                pools.append(self.pool(pools[-1]))
            d = self.after(torch.cat(pools, 1))
            e = self.up1(torch.cat([self.up(d), b], 1))
            f = self.up2(torch.cat([self.up(e), a], 1))
            g = self.out1(torch.cat([self.down1(f), e], 1))
            h = self.out2(torch.cat([self.down2(g), d], 1))
            scales = [head(v).flatten(2) for head, v in zip(self.heads, (f, g, h), strict=True)]
            boxes, classes = torch.cat(scales, 2).split((64, 80), 1)
            return torch.cat([boxes, classes.sigmoid()], 1)

    return Detector().eval(), lambda seed: (images(batch, 640, seed),)


NETWORKS: dict[str, Callable[[int], Network]] = {
    "resnet50": _vision("resnet50"),
    "vit_b16": _vision("vit_base_patch16_224"),
    "bert_base": _bert,
    "mobilenetv2": _vision("mobilenetv2_100"),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "convnext_t": _vision("convnext_tiny"),
    "deit_t": _vision("deit_tiny_patch16_224"),
    "swin_t": _vision("swin_tiny_patch4_window7_224"),
    "gpt2": _gpt2,
    "detector": _detector,
}


def export(model: Any, inputs: Inputs, path: Path) -> Path:
    """The ONNX file of a network, in the module's type; inputs are named input0, input1 ..."""
    import torch

    names = [f"input{i}" for i in range(len(inputs))]
    torch.onnx.export(
        model, inputs, str(path), input_names=names, output_names=["y"], dynamo=False,
        opset_version=17,
    )  # fmt: skip
    return path
