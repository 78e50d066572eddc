"""What the fuzzer does to engine files: as bytes, and as plans with a valid checksum."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from scripts.fuzz_mutations import mutated_bytes
from scripts.fuzz_values import INTEGERS, TEXTS


def mutated_engine(rng: random.Random, engines: list[bytes]) -> bytes:
    """An engine file that was sound before."""
    content = rng.choice(engines)
    if rng.random() < 0.35:
        return mutated_bytes(rng, content, lambda: rng.choice(engines))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    rows = {name: header[name]["data_offsets"] for name in header if name != "__metadata__"}
    parts = {name: data[start:end] for name, (start, end) in rows.items()}
    plan = json.loads(parts["plan"][: int(header["__metadata__"]["plan_bytes"])])
    if rng.random() < 0.2:
        _mutate_json(rng, header)
        return _engine_file(header, parts)
    for _ in range(rng.choice([1, 1, 2])):
        _mutate_json(rng, plan)
    text = json.dumps(plan).encode()
    parts["plan"] = text
    header["__metadata__"] |= {"plan_bytes": str(len(text)), "plan_crc32": str(zlib.crc32(text))}
    offset = 0
    for name, part in parts.items():
        header[name] |= {"shape": [len(part)], "data_offsets": [offset, offset + len(part)]}
        offset += len(part)
    return _engine_file(header, parts)


def _engine_file(header: Any, parts: Mapping[str, bytes]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts.values())


def _mutate_json(rng: random.Random, root: Any) -> None:
    """Overwrite, remove or repeat one value anywhere in `root`."""
    spots: list[tuple[Any, Any]] = []
    pending = [root]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            spots.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                pending.append(holder[key])
    holder, key = rng.choice(spots)
    others = [h[k] for h, k in rng.sample(spots, min(len(spots), 3))]
    kind = rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind < 0.6 and isinstance(holder[key], int):
        holder[key] = rng.choice([holder[key] + 1, holder[key] - 1, *INTEGERS])
    else:
        copies = json.loads(json.dumps(others))
        holder[key] = rng.choice([None, "", "x", [], {}, 1.5, True, *INTEGERS, *TEXTS, *copies])
