"""What Ray starts as a worker's Python: `python -I -S forked_python.py SOCKET SCRIPT ARGUMENTS...` (see `fork_server`).

Asks the server at SOCKET to go on as SCRIPT; without a server, it runs SCRIPT as any Python would.
"""

import json
import os
import socket
import sys

place, *arguments = sys.argv[1:]
request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
try:
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(60)
        server.connect(place)
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        if not server.recv(32):
            raise OSError("the server has not forked")
except OSError:
    os.execv(sys.executable, [sys.executable, *arguments])
