"""Show versions, devices, providers and settings: what a bug report needs."""

from __future__ import annotations

from typing import Any

from polytool.cli import options, output


@options.command()
@options.json
def env(as_json: bool) -> None:
    """Show versions, devices, providers and settings: what a bug report needs.

    \b
    Example: polytool env --json
    """
    from polytool.environment import environment

    found = environment()
    output.result(as_json, _text(found), found)


def _text(found: dict[str, Any]) -> str:
    memory = found["cpu"]["memory_bytes"]
    gpus = [", ".join(gpu.values()) for gpu in found["gpus"]]
    rows = [
        ("Python", found["python"]),
        ("platform", found["platform"]),
        ("CPU", f"{found['cpu']['name']}, {found['cpu']['cores']} cores"),
        ("memory", f"{memory / 2**30:.1f} GiB" if memory else "unknown"),
        *(("GPU", gpu) for gpu in gpus or ["none"]),
        ("runners", ", ".join(found["runners"])),
        ("onnxruntime", ", ".join(found["providers"] or ["not installed"])),
        ("BLAS", found["blas"] or "unknown"),
        *found["versions"].items(),
        *found["settings"].items(),
    ]
    return output.table(rows, ("what", "value"))
