"""What a study was run on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import torch


def hardware() -> str:
    """What this machine is."""
    memory = psutil.virtual_memory().total / 1024**3
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GB of memory, {gpu}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
