"""What a bug report needs: versions, devices, execution providers and settings."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

_PACKAGES = (
    "polytool",
    "onnx",
    "numpy",
    "ml_dtypes",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx-graphsurgeon",
    "onnx-ir",
    "safetensors",
    "click",
    "tabulate",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "nvidia-cudnn-frontend",
    "nvmath-python",
    "torch",
    "polygraphy",
    "tensorrt",
    "matplotlib",
    "pillow",
)
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_PATH",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NO_COLOR",
    "XDG_CACHE_HOME",
)


def environment() -> dict[str, Any]:
    """Everything that changes what polytool computes or how fast, ready for JSON.

    Returns:
        `versions` (installed packages), `python`, `platform`, `cpu`, `gpus` (one dict a device),
        `runners` (registered names), `providers` (of ONNX Runtime; null without it), `blas`,
        `settings` (environment variables that are set).
    """
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": gpus(),
        "runners": _runners(),
        "providers": _providers(),
        "blas": _blas(),
        "settings": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Installed packages that matter to polytool, without importing them."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs as `nvidia-smi` lists them; empty where there is no driver."""
    fields = ("name", "memory.total", "driver_version", "compute_cap")
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, PermissionError):
        return []
    except subprocess.TimeoutExpired:
        return [{"name": "nvidia-smi did not answer within 20 seconds"}]
    if done.returncode:
        return [{"name": f"nvidia-smi failed: {done.stdout.strip() or done.stderr.strip()}"}]
    lines = [line.split(", ") for line in done.stdout.splitlines() if line]
    return [dict(zip(fields, line, strict=False)) for line in lines]


def _cpu() -> dict[str, Any]:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(0)
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "name": _cpu_name(),
        "cores": len(allowed) or os.cpu_count(),
        "memory_bytes": memory,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _runners() -> list[str]:
    from polytool.backends.registry import available

    return list(available())


def _providers() -> list[str] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def _blas() -> str | None:
    """The library behind NumPy's matrix products."""
    import numpy

    config: Any = numpy.show_config(mode="dicts")
    found = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return " ".join(x for x in (found.get("name"), found.get("version")) if x) or None
