"""Job: train a LoRA for each passage, as PRAG does, or generate it, as DyPRAG does, into a bank. Ray Data streams the
passages through trainers, or through translators.

ray job submit -- python -m ray_jobs.train_adapters --config configs/jobs/adapters-lab.yaml

Interrupted at any point, the same command continues: blocks that are done have a receipt in the bank.
"""

from __future__ import annotations

from ray_jobs.bank_actors import AdapterActor, TranslatorActor
from ray_jobs.build_bank import Built, describe, fill
from ray_jobs.cluster import cluster, job_main, model_devices, require_model, run_task
from ray_jobs.waiting import ONE_CPU, wait_for_room
from regrad.bank.format import Layout
from regrad.data.augmented import AUGMENTED, augmented_file
from regrad.methods.prag import adapters_base, adapters_layout
from regrad.models.loading import load_language_model
from regrad.storage import Storage
from regrad.training.lora.batched import AdapterTrainer
from regrad.training.lora.config import AdaptersConfig
from regrad.training.lora.examples import adapter_demonstrations
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.translator.artifact import TRANSLATOR_CARD, Translator


def run(config: AdaptersConfig) -> str:
    """Train and commit one version of the bank; returns one line saying what was made and where."""
    return describe(train(config).manifest, config.bank.uri)


def train(config: AdaptersConfig) -> Built:
    """As `run`, returning what was built. With `config.reuse`, passages that the bank has keep their adapters."""
    require_model(config.model.path)
    adapter_demonstrations(config)  # a file that is wrong is found before a model is loaded
    if config.translator:
        TRANSLATOR_CARD.read(config.translator)
    if config.translator is None or Storage(config.corpus).exists(AUGMENTED):
        config = config.model_copy(update={"corpus": augmented_file(config.corpus)})
    with cluster():
        wait_for_room(ONE_CPU)
        layout = run_task(layout_of, config, num_cpus=1)
        return fill(config, layout, TranslatorActor if config.translator else AdapterActor, keep=config.reuse)


def layout_of(config: AdaptersConfig) -> Layout:
    """The layout of the bank; loads the model, to whose weights adapters are bound.

    Raises as `AdapterTrainer`, and `MethodError` for a translator of another base.
    """
    static = StaticLora.load(config.static) if config.static else None
    translator = Translator.load(config.translator) if config.translator else None
    lm, codec = load_language_model(config.model, model_devices()), config.bank.codec
    if translator:
        translator.check_base(lm)
        digest, subspace, base = translator.digest, translator.subspace, translator.base_identity
    else:
        trainer = AdapterTrainer(lm, config.adapter, static, config.seed, start_from=config.start_from)
        base = adapters_base(lm.identity(), static.digest if static else None)
        digest, subspace = None, trainer.subspace
    fingerprint = adapters_layout(subspace, base)
    return Layout(kind="adapter", fingerprint=fingerprint, translator=digest, codec=codec, subspace=subspace.to_json())


if __name__ == "__main__":
    job_main(AdaptersConfig, run, __doc__ or "")
