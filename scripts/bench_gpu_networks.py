"""ResNet-50, ViT-B/16 and BERT-base put together by hand from the engine's blocks, and as torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from polytool.backends.native.kernels import gemm, launch, rows
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.pointwise import Operand, Pointwise, copy
from polytool.backends.native.kernels.transpose import PackImage
from polytool.backends.native.tactics import cudnn
from polytool.tensors import DType
from scripts.bench_gpu_layers import H, Network, S, affine, epilogue
from scripts.bench_gpu_tune import Device, cudnn_choices


def half(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cuda", torch.float16).contiguous()


def resnet50(batch: int) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    for module in model.modules():  # statistics that batch norms of a trained network could have
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.weight.data.uniform_(0.3, 0.9)
    return model, [torch.randn(batch, 3, 224, 224)]


def folded(conv: Any, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [out, kh, kw, in] and bias with the batch norm folded in."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    w = conv.weight * scale[:, None, None, None]
    return half(w.permute(0, 2, 3, 1)), half(norm.bias - norm.running_mean * scale)


def build_resnet(net: Network, model: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The stem reads pairs of pixels as one, so that its channels fill 16 bytes."""
    image = half(inputs[0])
    b = image.shape[0]
    w, bias = folded(model.conv1, model.bn1)
    x = stem(net, image, w, bias)
    x = net.max_pool("maxpool", x)
    for s, stage in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        for i, block in enumerate(stage):
            name, shortcut = f"layer{s + 1}.{i}", x
            y = net.conv(f"{name}.conv1", x, *folded(block.conv1, block.bn1), 1)
            y = net.conv(f"{name}.conv2", y, *folded(block.conv2, block.bn2), block.stride)
            if block.downsample is not None:
                w, bias = folded(block.downsample[0], block.downsample[1])
                shortcut = net.conv(f"{name}.down", x, w, bias, block.stride, None, "none")
            x = net.conv(f"{name}.conv3", y, *folded(block.conv3, block.bn3), 1, shortcut)
    y = net.mean("mean", x)
    return net.gemm("fc", y, half(model.fc.weight), half(model.fc.bias)).reshape(b, 1000)


def stem(net: Network, image: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Packing, then a 7x7 convolution with stride 2: as 7x4 over pixel pairs, or by cuDNN."""
    b = image.shape[0]
    pairs = torch.zeros(64, 7, 8, 4, dtype=torch.float16, device="cuda")
    pairs[:, :, :7, :3] = w
    padded = torch.zeros(64, 7, 7, 8, dtype=torch.float16, device="cuda")
    padded[..., :3] = w
    out = net.tensor(b, 112, 112, 64)
    scratch = net.tensor(b * 232 * 232 * 8)
    buffers = [image, pairs, padded, bias, scratch, out]
    problem = gemm.Convolution(b, 230, 115, 8, 64, (7, 4), (2, 1))
    pack4 = PackImage(DType.FLOAT16, 4).plan((b, 3, 224, 224), 3, 3, (230, 230))
    pack8 = PackImage(DType.FLOAT16, 8).plan((b, 3, 224, 224))
    net.plans += [pack4, pack8]
    choices = []
    for choice in net.own(epilogue(False, "relu"), problem):

        def make(addresses: Any, choice: Any = choice) -> Any:
            x, p, _, v, s, y = addresses
            first = launch.prepare_plan(
                pack4, net.device.device, [x, s], overlap=net.device.overlap
            )
            return [*first, *choice.make([s, p, v, y])]

        choices.append(type(choice)(choice.label, make))
    description = cudnn.Convolution(
        (b, 8, 224, 224), (64, 8, 7, 7), (b, 64, 112, 112), (2, 2), (3, 3, 3, 3),
        activation="relu",
    )  # fmt: skip
    for choice in cudnn_choices(net.device, description, 8):

        def make8(addresses: Any, choice: Any = choice) -> Any:
            x, _, p, v, s, y = addresses
            first = launch.prepare_plan(
                pack8, net.device.device, [x, s], overlap=net.device.overlap
            )
            return [*first, *choice.make([s, p, v, y])]

        choices.append(type(choice)(choice.label, make8))

    def reference() -> torch.Tensor:
        y = F.conv2d(image.float(), w.permute(0, 3, 1, 2).float(), bias.float(), 2, 3)
        return F.relu(y).permute(0, 2, 3, 1)

    return net.add("stem", ("stem", b), buffers, (1, 2), choices, reference)


def vit_b16(batch: int) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", pretrained=False).eval()
    return model, [torch.randn(batch, 3, 224, 224)]


def build_vit(net: Network, model: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
    image = half(inputs[0])
    b, n, c = image.shape[0], 197, 768
    # patches: [b, 14, 14, (3, 16, 16)] out of NCHW, sixteen pixels contiguous
    patches = net.tensor(b * 196, 768)
    shape = (b, 14, 14, 3, 16, 16)
    steps = (3 * 224 * 224, 16 * 224, 16, 224 * 224, 224, 1)
    cut = copy(DType.FLOAT16)
    source = [Operand(shape, steps)]
    plan = cut.plan(shape, source, pattern=cut.pattern(shape, source))

    def as_patches() -> torch.Tensor:
        x = image.reshape(b, 3, 14, 16, 14, 16).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(b * 196, 768)

    net.add("patches", ("patches", b), [image, patches], (), [net.kernel("own", plan)], as_patches)
    tokens = net.tensor(b, n, c)
    token = half(model.cls_token).reshape(c)
    target = [Operand((b, c), (n * c, 1))]
    place = copy(DType.FLOAT16)
    pattern = place.pattern((b, c), [Operand((c,))], target)
    plan = place.plan((b, c), [Operand((c,))], target, pattern)
    first = tokens[:, 0]
    net.add(
        "cls", ("cls", b), [token, first], (), [net.kernel("own", plan)], lambda: token.expand(b, c)
    )
    w, bias = half(model.patch_embed.proj.weight).reshape(c, -1), half(model.patch_embed.proj.bias)
    rest = tokens[:, 1:]
    problem = gemm.Matrix(196, c, c, b, batch_a=196 * c, batch_d=n * c)
    net.gemm("embed", patches, w, bias, out=rest, problem=problem)
    place_ = half(model.pos_embed).reshape(n, c)
    x, y = net.tensor(b * n, c), net.tensor(b * n, c)
    add = Tree((H, H), (Step.of("Add", 0, 1, dtype=H),))
    norm1 = model.blocks[0].norm1
    op = rows.RowOp("layernorm", add, ("full", "outer"), affine(), ("column", "column"), True)
    plan = op.plan(b * n, c, epsilon=norm1.eps, outer=(b, n), outer_strides=[(0, c)])
    gamma, beta = half(norm1.weight), half(norm1.bias)

    def embedded() -> torch.Tensor:
        v = tokens.float() + place_.float()
        return F.layer_norm(v, (c,), gamma.float(), beta.float(), norm1.eps).reshape(b * n, c)

    net.add(
        "embed.norm", ("embed.norm", b), [tokens, place_, gamma, beta, y, x], (),
        [net.kernel("own", plan)], embedded, 4,
    )  # fmt: skip
    for i, block in enumerate(model.blocks):
        name = f"block{i}"
        if i:
            norm = block.norm1
            y = net.norm(f"{name}.norm1", x, half(norm.weight), half(norm.bias), norm.eps)
        qkv, proj = block.attn.qkv, block.attn.proj
        y = net.gemm(f"{name}.qkv", y, half(qkv.weight), half(qkv.bias))
        y = net.attention(f"{name}.attention", y, b, 12)
        x = net.gemm(f"{name}.proj", y, half(proj.weight), half(proj.bias), x)
        norm, fc1, fc2 = block.norm2, block.mlp.fc1, block.mlp.fc2
        y = net.norm(f"{name}.norm2", x, half(norm.weight), half(norm.bias), norm.eps)
        y = net.gemm(f"{name}.fc1", y, half(fc1.weight), half(fc1.bias), None, "gelu")
        x = net.gemm(f"{name}.fc2", y, half(fc2.weight), half(fc2.bias), x)
    norm = model.norm
    y = net.norm("norm", x, half(norm.weight), half(norm.bias), norm.eps)
    problem = gemm.Matrix(b, 1000, c, lda=n * c)
    out = net.tensor(b, 1000)
    return net.gemm(
        "head", y, half(model.head.weight), half(model.head.bias), None, "none", out, problem
    )


class Bert(torch.nn.Module):
    """transformers' BertModel with the inputs of the exported model."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(attn_implementation="sdpa")
        self.model = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.model(input_ids=ids, token_type_ids=types, attention_mask=mask)
        return found.last_hidden_state


def bert_base(batch: int) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = Bert().eval()
    mask = torch.ones(batch, 128, dtype=torch.int64)
    mask[batch // 2 :, 100:] = 0
    ids = torch.randint(0, 30000, (batch, 128))
    return model, [ids, torch.zeros_like(ids), mask]


def build_bert(net: Network, model: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
    bert = model.model
    ids, types, mask = (t.cuda() for t in inputs)
    b, n, c = ids.shape[0], 128, 768
    scores = net.tensor(b, n)
    lowest = float(torch.finfo(torch.float16).min)
    tree = Tree(
        (DType.INT64,),
        (
            Step.of("Cast", 0, dtype=S),
            Step.of("Constant", dtype=S, value=1.0),
            Step.of("Sub", 2, 1, dtype=S),
            Step.of("Constant", dtype=S, value=lowest),
            Step.of("Mul", 3, 4, dtype=H),
        ),
    )
    work = Pointwise(tree)
    plan = work.plan((b, n), [Operand((b, n))])
    net.add(
        "mask", ("mask", b), [mask, scores], (), [net.kernel("own", plan)],
        lambda: (1.0 - mask.float()) * lowest + 1e-9,
    )  # fmt: skip
    e = bert.embeddings
    words, kinds = half(e.word_embeddings.weight), half(e.token_type_embeddings.weight)
    places = half(e.position_embeddings.weight)[:n].contiguous()
    gamma, beta = half(e.LayerNorm.weight), half(e.LayerNorm.bias)
    add = Tree((H, H, H), (Step.of("Add", 0, 1, dtype=H), Step.of("Add", 3, 2, dtype=H)))
    op = rows.RowOp("layernorm", add, ("gather", "gather", "outer"), affine(), ("column", "column"))
    plan = op.plan(b * n, c, epsilon=1e-12, outer=(b, n), outer_strides=[(0, c)])
    x = net.tensor(b * n, c)

    def embedded() -> torch.Tensor:
        v = words.float()[ids] + kinds.float()[types] + places.float()
        return F.layer_norm(v, (c,), gamma.float(), beta.float(), 1e-12).reshape(b * n, c)

    net.add(
        "embed", ("embed", b), [words, kinds, places, gamma, beta, x, ids, types], (),
        [net.kernel("own", plan)], embedded, 5,
    )  # fmt: skip
    for i, layer in enumerate(bert.encoder.layer):
        name, own = f"layer{i}", layer.attention.self
        w = torch.cat([half(m.weight) for m in (own.query, own.key, own.value)])
        bias = torch.cat([half(m.bias) for m in (own.query, own.key, own.value)])
        y = net.gemm(f"{name}.qkv", x, w, bias)
        y = net.attention(f"{name}.attention", y, b, 12, scores)
        out, up, down = layer.attention.output, layer.intermediate.dense, layer.output
        y = net.gemm(f"{name}.proj", y, half(out.dense.weight), half(out.dense.bias))
        x = net.norm(
            f"{name}.norm1", y, half(out.LayerNorm.weight), half(out.LayerNorm.bias), 1e-12, x
        )
        y = net.gemm(f"{name}.fc1", x, half(up.weight), half(up.bias), None, "gelu")
        y = net.gemm(f"{name}.fc2", y, half(down.dense.weight), half(down.dense.bias))
        x = net.norm(
            f"{name}.norm2", y, half(down.LayerNorm.weight), half(down.LayerNorm.bias), 1e-12, x
        )
    return x.reshape(b, n, c)


NETWORKS = {
    "resnet50": (resnet50, build_resnet),
    "vit_b16": (vit_b16, build_vit),
    "bert": (bert_base, build_bert),
}


def new_network(device: Device, fusions: int) -> Network:
    return Network(device, fusions)
