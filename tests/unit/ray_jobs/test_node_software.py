"""What is said of a node that has other software than the driver."""

from __future__ import annotations

import pytest

from ray_jobs.node_software import compared

HERE = {"regrad": "0.1.0", "torch": "2.13.0+cpu", "deepspeed": "0.19.8"}


@pytest.mark.parametrize("torch", ["2.13.0+cpu", "2.13.0+cu130", "2.13.0"])
def test_another_build_of_one_version_is_the_same(torch: str) -> None:
    assert compared("10.0.0.2/abc", HERE, {**HERE, "torch": torch}) == []


def test_what_is_older_or_missing_is_named_with_its_node() -> None:
    older, missing = compared("10.0.0.2/abc", HERE, {"regrad": "0.1.0", "torch": "2.12.1+cu130"})
    assert older.code == "cluster.version_skew"
    assert older.fields == {
        "node": "10.0.0.2/abc",
        "package": "torch",
        "expected": "2.13.0+cpu",
        "found": "2.12.1+cu130",
    }
    assert missing.code == "cluster.dependency_missing"
    assert missing.fields == {"node": "10.0.0.2/abc", "package": "deepspeed"}
    assert "deepspeed==0.19.8" in str(missing)
