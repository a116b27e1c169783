"""Ray Train with DeepSpeed on two workers against the same loop in one process with plain AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs import meta_train
from ray_jobs.cluster import cluster
from regrad.config import LabConfig, MetaTrainConfig, builtin_config
from regrad.errors import TrainingError
from regrad.lab.files import write_lab
from regrad.language_model.loading import load_language_model
from regrad.meta.loop import MetaParameters, learning_rate_factor, parameter_groups, to_meta_init, train
from regrad.meta.tasks import read_tasks
from regrad.meta_init import MetaInit
from regrad.settings import load_settings
from regrad.storage import Storage


@pytest.fixture(scope="module", autouse=True)
def local_cluster(s3: str) -> Iterator[None]:
    with cluster():
        yield


class PlainEngine:
    """What DeepSpeed does, in four lines of PyTorch."""

    def __init__(self, parameters: MetaParameters, config: MetaTrainConfig) -> None:
        settings = config.optimizer
        self._parameters, self._clip = parameters, settings.clip
        self._optimizer = torch.optim.AdamW(parameter_groups(parameters, settings))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_factor(settings, step)
        )

    def backward(self, loss: Any) -> None:
        self._optimizer.zero_grad()
        loss.backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters.parameters(), self._clip)
        self._optimizer.step()
        self._schedule.step()


def settings(folder: Path, *extra: str) -> MetaTrainConfig:
    write_lab(LabConfig(output=str(folder / "lab"), task_records=12))
    values = [f"tasks={folder}/lab/tasks.jsonl", "dev=null", f"output={folder}/m", "optimizer.steps=4", *extra]
    return load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), values)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_deepspeed_workers_train_what_one_process_trains(tmp_path: Path, s3: str, stage: int) -> None:
    """With each ZeRO stage; the last one hands over and writes to an object store."""
    output = f"{s3}/trained" if stage == 2 else f"{tmp_path}/m"
    config = settings(tmp_path, f"optimizer.zero_stage={stage}", f"output={output}")
    lm = load_language_model(config.model, "cpu")
    parameters = MetaParameters(lm, config.initial_step_size, config.seed)
    start = parameters.phi0.detach().clone()
    train(lm, parameters, PlainEngine(parameters, config), read_tasks(config.tasks), config)
    alone = to_meta_init(lm, parameters, config, {})
    line = meta_train.run(config)
    shared = MetaInit.load(output)
    assert line == f"MetaInit {shared.fingerprint} at {output}: 4 steps"
    left = Storage(output.rpartition("/")[0]).list()
    assert not [name for name in left if name.startswith(".")], "nothing of the hand-over is left"
    moved = (alone.phi0 - start).norm()
    # AdamW divides by the root of the squared gradient: where that is tiny, float32 rounding of the average shows.
    assert (shared.phi0 - alone.phi0).norm() / moved < 2e-2
    torch.testing.assert_close(shared.step_sizes, alone.step_sizes, rtol=1e-3, atol=1e-3)


def test_a_batch_that_workers_cannot_share_is_a_clear_error(tmp_path: Path) -> None:
    config = settings(tmp_path, "optimizer.batch_size=3")
    with pytest.raises(TrainingError, match="batch_size 3 cannot be shared by 2 workers equally"):
        meta_train.run(config)
    assert not (tmp_path / "m").exists()


def test_a_loss_that_diverges_is_a_clear_error(tmp_path: Path) -> None:
    config = settings(tmp_path, "initial_step_size=1e30", "cluster.workers=1")
    with pytest.raises(TrainingError, match="loss is not finite at step 1; lower initial_step_size"):
        meta_train.run(config)
