"""Where a base model is, asked without loading anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrad.errors import ModelError
from regrad.models.paths import place_of
from tests.tools.refusals import refused


@pytest.mark.parametrize("path", ["smollm", "organisation/name", "s3://bucket/model"])
def test_what_is_elsewhere_is_not_looked_for(path: str) -> None:
    assert place_of(path) == path


@pytest.mark.parametrize(
    "path", ["/nowhere/model", "./nowhere", "../nowhere", "a/b/c", "~nobody/model", "file:///nowhere/model"]
)
def test_a_path_with_nothing_there_is_refused(path: str) -> None:
    with refused(ModelError, "not_found", path=path):
        place_of(path)


def test_a_directory_is_itself_and_a_package_its_directory(tmp_path: Path) -> None:
    assert place_of(str(tmp_path)) == str(tmp_path)
    assert Path(place_of("package:regrad.lab/base")).is_dir()
    with refused(ModelError, "not_found", path="package:regrad.lab/nothing"):
        place_of("package:regrad.lab/nothing")
    with refused(ModelError, "package_not_found", package="no_such_package"):
        place_of("package:no_such_package/base")
