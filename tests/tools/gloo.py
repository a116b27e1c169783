"""A script run by two workers that talk by gloo, without Ray: how it is started, and how it begins and ends.

The first worker writes `results.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from tests.tools.patience import finish


def run_two(script: ModuleType, folder: Path, port: int, variables: Mapping[str, str], seconds: float) -> Path:
    """Run the script's file as both workers, to their end; the test fails with what the first one printed."""
    command = [sys.executable, str(script.__file__)]
    root = str(Path(str(script.__file__)).parents[2])
    started = {**variables, "PYTHONPATH": root, "DS_ACCELERATOR": "cpu"}
    workers = [
        subprocess.Popen(
            [*command, rank, str(port), str(folder)], env=started, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    outputs = [finish(worker, seconds) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), outputs[0][1].decode()[-3000:]
    return folder


def results(folder: Path, name: str) -> Any:
    """What the first worker found under this name."""
    return json.loads((folder / "results.json").read_text())[name]


def work(check: Callable[[int, Path], Mapping[str, Any]]) -> None:
    """The script's main: join the other worker, call `check(rank, folder)` and write what the first one found."""
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = check(rank, folder)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(found))
    dist.destroy_process_group()
