"""Stopping a command that waits: signals that come all at once do not hang it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.tools.patience import finish

_WAITS = (
    "from regrad.cli.options import wait_until_stopped as wait; print('waits', flush=True); wait(); print('stopped')"
)


def test_signals_that_come_all_at_once_stop_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", _WAITS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    time.sleep(0.05)  # its handlers are not up before it waits
    for _ in range(100):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        if process.poll() is not None:
            break
    out, _ = finish(process, 20)
    assert out == "stopped\n" or process.returncode in (-signal.SIGTERM, -signal.SIGINT)
