"""What a run can set, typed and validated. Files under `configs/` are written in these words."""

from __future__ import annotations

from pathlib import Path

from regrad.config.adaptation import (
    AdamWConfig,
    AdapterConfig,
    AdaptersConfig,
    AugmentConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    Objective,
    adapter_subspace,
)
from regrad.config.bank import (
    BankConfig,
    BuildConfig,
    CodecName,
    IndexConfig,
    RetrieverConfig,
    SourceConfig,
    TiersConfig,
)
from regrad.config.cluster import WorkersConfig
from regrad.config.eval import EvalBatchConfig, EvalConfig, EvalSetConfig, PassagesConfig, PassageSource
from regrad.config.evaluation import QuestionSetConfig
from regrad.config.lab import DemoConfig, LabConfig, LabPretrainConfig, LabWriterConfig
from regrad.config.methods import MethodConfig
from regrad.config.model import ModelConfig, ModelPath, SubspaceConfig
from regrad.config.serving import (
    BatchConfig,
    GroupConfig,
    HttpConfig,
    LimitsConfig,
    ProtectionConfig,
    ReplicaConfig,
    ServeConfig,
    WatchingConfig,
)
from regrad.config.synthesis import SynthesisConfig
from regrad.config.training import (
    CheckpointConfig,
    DevConfig,
    InnerConfig,
    MetaTrainConfig,
    OptimizerConfig,
    ShapeConfig,
    StrategyConfig,
    StrategyName,
    TaskSource,
    WatchConfig,
)

__all__ = [
    "AdamWConfig",
    "AdapterConfig",
    "AdaptersConfig",
    "AugmentConfig",
    "BankConfig",
    "BatchConfig",
    "BuildConfig",
    "CheckpointConfig",
    "CodecName",
    "DemoConfig",
    "DevConfig",
    "EvalBatchConfig",
    "EvalConfig",
    "EvalSetConfig",
    "FinetuneConfig",
    "FinetuneOptimizerConfig",
    "GroupConfig",
    "HttpConfig",
    "IndexConfig",
    "InnerConfig",
    "LabConfig",
    "LabPretrainConfig",
    "LabWriterConfig",
    "LimitsConfig",
    "MetaTrainConfig",
    "MethodConfig",
    "ModelConfig",
    "ModelPath",
    "Objective",
    "OptimizerConfig",
    "PassageSource",
    "PassagesConfig",
    "ProtectionConfig",
    "QuestionSetConfig",
    "ReplicaConfig",
    "RetrieverConfig",
    "ServeConfig",
    "ShapeConfig",
    "SourceConfig",
    "StrategyConfig",
    "StrategyName",
    "SubspaceConfig",
    "SynthesisConfig",
    "TaskSource",
    "TiersConfig",
    "WatchConfig",
    "WatchingConfig",
    "WorkersConfig",
    "adapter_subspace",
    "builtin_config",
]


def builtin_config(name: str) -> Path:
    """A file that comes with regrad, such as `jobs/train-lab.yaml`: from the wheel, or from a source checkout."""
    package = Path(__file__).parents[1]
    wheel, checkout = package / "configs" / name, package.parent / "configs" / name
    return wheel if wheel.exists() else checkout
