"""Files that Ray Train writes: complete, or as they were."""

from __future__ import annotations

import copy
from pathlib import Path

from pyarrow.fs import FileSelector, LocalFileSystem, PyFileSystem, copy_files

from ray_jobs.train_runner import WholeFiles


def test_a_file_is_replaced_when_it_is_closed_and_not_before(tmp_path: Path) -> None:
    files, path = PyFileSystem(WholeFiles()), str(tmp_path / "list.json")
    with files.open_output_stream(path) as stream:
        stream.write(b"first")
    stream = files.open_output_stream(path)
    stream.write(b"sec")
    stream.flush()
    assert Path(path).read_bytes() == b"first", "a process that is killed now leaves the old file"
    stream.write(b"ond")
    stream.close()
    assert Path(path).read_bytes() == b"second"
    assert [file.name for file in tmp_path.iterdir()] == ["list.json"]


def test_it_travels_to_workers_and_takes_directories(tmp_path: Path) -> None:
    (tmp_path / "from" / "inner").mkdir(parents=True)
    (tmp_path / "from" / "inner" / "a").write_bytes(b"x" * 100_000)
    files = copy.deepcopy(PyFileSystem(WholeFiles()))  # by way of pickle
    copy_files(str(tmp_path / "from"), str(tmp_path / "to"), LocalFileSystem(), files)
    assert (tmp_path / "to" / "inner" / "a").read_bytes() == b"x" * 100_000
    assert [info.base_name for info in files.get_file_info(FileSelector(str(tmp_path / "to"), recursive=True))] == [
        "inner",
        "a",
    ]
