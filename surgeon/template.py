"""A script to start one's own graph surgery from."""

from __future__ import annotations

import os

from polytool.files import StrPath, replacing, write_all
from polytool.model import Source, load

_SCRIPT = '''#!/usr/bin/env python3
"""Change {name} with onnx-graphsurgeon, check the result, save it.

{interface}
"""

from polytool.model import load
from polytool.surgeon import from_gs, to_gs
from polytool.surgeon.verify import compare_models

graph = to_gs({path!r})

# Tensors by name:          tensors = graph.tensors()
# Other inputs or outputs:  graph.outputs = [tensors["name"]]
# Nodes of one kind:        [node for node in graph.nodes if node.op == "Conv"]
# A node's neighbours:      node.i(0), node.o()
# Its attributes:           node.attrs["axis"]
# A new node:               graph.layer(op="Relu", inputs=[tensor], outputs=["new"])
for node in graph.nodes:
    print(node.op, node.name, [t.name for t in node.inputs], [t.name for t in node.outputs])

graph.cleanup().toposort()

# What GraphSurgeon forgets (metadata, doc strings, quantisation annotations ...) comes back here.
model = from_gs(graph)
print(compare_models(load({path!r}), model))
model.save({output!r})
'''


def onnx_gs_script(source: Source, path: StrPath) -> str:
    """A script that loads the model at `path`, walks over its graph and saves the result."""
    graph = load(source).proto.graph
    known = {t.name for t in graph.initializer}
    lines = [f"Inputs: {', '.join(i.name for i in graph.input if i.name not in known)}"]
    lines.append(f"Outputs: {', '.join(o.name for o in graph.output)}")
    lines.append(f"Nodes: {len(graph.node)}")
    text = os.fspath(path)
    stem, extension = os.path.splitext(text)
    interface, name = _harmless("\n".join(lines)), _harmless(os.path.basename(text))
    return _SCRIPT.format(
        name=name,
        interface=interface,
        path=text,
        output=f"{stem}_changed{extension or '.onnx'}",
    )


def _harmless(text: str) -> str:
    """Names may hold anything; a backslash or three quotes must not end the docstring."""
    return text.replace("\\", "/").replace('"', "'")


def write_script(source: Source, path: StrPath, target: StrPath) -> None:
    """Write that script to `target`, whole or not at all."""
    with replacing(target) as file:
        write_all(file, onnx_gs_script(source, path).encode())
