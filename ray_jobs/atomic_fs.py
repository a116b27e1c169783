"""A local file system on which a file is complete or as it was, for what Ray Train writes."""

from __future__ import annotations

import io
import os
import uuid
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler


class WholeFiles(FSSpecHandler):  # type: ignore[misc]
    """Writes beside the file and renames when it is closed.

    Ray Train writes its list of checkpoints in place: killed in that moment, it would leave an empty list, with which
    no run goes on.
    """

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """See pyarrow's handler."""
        return PythonFile(_Beside(path), mode="w")


class _Beside(io.FileIO):
    def __init__(self, path: str) -> None:
        self._path, self._beside = path, f"{path}.{uuid.uuid4().hex[:8]}.part"
        super().__init__(self._beside, "wb")

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.replace(self._beside, self._path)
