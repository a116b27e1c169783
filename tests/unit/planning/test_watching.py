"""What processes hold, seen from outside."""

from __future__ import annotations

import subprocess
import sys

from regrad.planning.watching import private_bytes

_MIB = 1 << 20


def test_private_memory_is_that_of_this_process_and_of_those_that_it_started() -> None:
    before = private_bytes()
    held = bytearray(b"x" * (64 * _MIB))
    own = private_bytes()
    assert 56 * _MIB < own - before < 80 * _MIB
    program = f"held = bytearray(b'x' * {64 * _MIB}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert private_bytes() - own > 56 * _MIB
        assert private_bytes(started=False) - own < 16 * _MIB
        child.communicate(b"\n")
    assert len(held) == 64 * _MIB
