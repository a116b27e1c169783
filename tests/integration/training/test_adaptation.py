"""Fine-tuning, augmentation and adapters as jobs: what one process would make, and what is left after a failure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ray_jobs import augment, finetune, train_adapters, train_predictor, train_runner
from ray_jobs.bank_actors import AdapterActor
from regrad.bank.reader import BankReader
from regrad.data.augmented import encode_augmented, read_augmented
from regrad.errors import MethodError, StorageError, SynthesisError, TrainingError
from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.methods.base import Evidence, open_question
from regrad.methods.prag import PragConfig, PragOnLoraConfig
from regrad.methods.rag_gd import RagGdConfig
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.training.loop import loop_of
from regrad.training.lora.batched import AdapterTrainer
from regrad.training.lora.config import AdaptersConfig, AugmentConfig, FinetuneConfig
from regrad.training.lora.examples import read_examples
from regrad.training.lora.finetuning import LoraLearner, finetune_in_process, usable
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.lora.soft_prompt import SoftPrompt
from regrad.training.predictor.artifact import UpdatePredictor
from regrad.training.predictor.config import PredictorConfig
from regrad.training.predictor.learner import predictor_in_process
from regrad.training.sampler import batches_of
from tests.tools.adapting import untrained_translator
from tests.tools.refusals import refused

pytestmark = pytest.mark.usefixtures("local_cluster")

PASSAGES = 10


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adaptation")
    write_lab(LabConfig(output=str(folder), task_records=6, augmented=3, people_per_record=3))
    items = list(read_augmented(str(folder)))[:PASSAGES]
    (folder / "augmented.jsonl").write_bytes(encode_augmented(items))
    return folder


def finetuning(lab: Path, output: Path, *extra: str) -> FinetuneConfig:
    values = [f"corpus={lab}/augmented.jsonl", f"output={output}", "objective=instruction", "checkpoints.every=2"]
    values += ["optimizer.epochs=null", "optimizer.steps=5", "optimizer.batch_size=4", *extra]
    return load_settings(FinetuneConfig, builtin_config("jobs/finetune-lab.yaml"), values)


def test_two_workers_finetune_what_one_process_does_and_a_foreign_directory_is_left_alone(
    lab: Path, tmp_path: Path
) -> None:
    config = finetuning(lab, tmp_path / "lora")
    line = finetune.run(config)
    lm = load_language_model(config.model, "cpu")
    examples = usable(lm, read_examples(config, lm), config)
    alone = LoraLearner(lm, config)
    state = loop_of(alone, config, len(examples)).run(batches_of(examples, config))
    made = StaticLora.load(tmp_path / "lora")
    torch.testing.assert_close(made.values, alone.values, rtol=1e-3, atol=1e-5)
    assert made.notes["losses"] == pytest.approx(state.losses, abs=1e-4)
    assert line.startswith(
        f"adapter {made.digest} at {tmp_path}/lora: instruction, {PASSAGES} examples, 5 steps, loss "
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "lora.logs"], "the numbers"
    kept = made.notes["seconds"]
    assert finetune.run(config).startswith(f"finished already: {line}; ")
    with refused(TrainingError, "finished_with_other_settings", keys=["optimizer.lr"]):
        finetune.run(finetuning(lab, tmp_path / "lora", "optimizer.lr=0.1"))
    assert StaticLora.load(tmp_path / "lora").notes["seconds"] == kept, "it was not trained again"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with refused(StorageError, "occupied"):
        finetune.run(finetuning(lab, tmp_path / "mine"))
    with refused(TrainingError, "batch_not_divisible", batch_size=3, workers=2):
        finetune.run(finetuning(lab, tmp_path / "odd", "optimizer.batch_size=3"))


def test_a_run_that_failed_goes_on_from_its_checkpoint(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = "cluster.workers=1"
    whole = finetune_in_process(finetuning(lab, tmp_path / "whole", alone))
    with monkeypatch.context() as patch:
        patch.setattr(train_runner, "checkpoint_of", _fail)  # after the last checkpoint, before the result is there
        with pytest.raises(RuntimeError, match="killed"):
            finetune.run(finetuning(lab, tmp_path / "again", alone))
    assert not (tmp_path / "again").exists()
    with refused(TrainingError, "run_of_other_settings", keys=["optimizer.lr"]):
        finetune.run(finetuning(lab, tmp_path / "again", "optimizer.lr=0.1", alone))
    finetune.run(finetuning(lab, tmp_path / "again", alone))
    assert torch.equal(StaticLora.load(tmp_path / "again").values, whole.values)


def test_two_workers_train_a_soft_prompt_as_one_process_does(lab: Path, tmp_path: Path) -> None:
    soft = ("soft_prompt.tokens=6", "optimizer.lr=0.03", "optimizer.steps=3")
    whole = finetune_in_process(finetuning(lab, tmp_path / "whole", *soft, "cluster.workers=1"))
    line = finetune.run(finetuning(lab, tmp_path / "soft", *soft))
    made = SoftPrompt.load(tmp_path / "soft")
    torch.testing.assert_close(made.values, whole.values, rtol=1e-3, atol=1e-4)
    assert line.startswith(f"soft prompt {made.digest} at {tmp_path}/soft: instruction, {PASSAGES} examples, 3 steps, ")
    assert line.endswith(", 6 virtual tokens in 3.1 kB")
    with refused(StorageError, "occupied"):
        finetune.run(finetuning(lab, tmp_path / "soft"))


def _fail(*_: object) -> None:
    raise RuntimeError("killed")


def adapters(lab: Path, bank: Path, *extra: str) -> AdaptersConfig:
    values = [f"corpus={lab}", f"bank.uri={bank}", "bank.shard_passages=4", "adapter.epochs=1", *extra]
    return load_settings(AdaptersConfig, builtin_config("jobs/adapters-lab.yaml"), values)


def test_adapters_are_trained_into_a_bank_that_prag_reads_or_generated_into_another(lab: Path, tmp_path: Path) -> None:
    config = adapters(lab, tmp_path / "bank")
    line = train_adapters.run(config)
    assert line.startswith(f"bank version 1-{BankReader(config.bank.uri).manifest.label[2:]} at {config.bank.uri}: ")
    bank, items = BankReader(config.bank.uri), list(read_augmented(str(lab)))
    assert (len(bank), bank.manifest.kind) == (PASSAGES, "adapter")
    lm = load_language_model(config.model, "cpu")
    alone = AdapterTrainer(lm, config.adapter, seed=config.seed).train(items[:2])
    for item, adapter in zip(items, alone, strict=False):
        assert adapter.values is not None
        torch.testing.assert_close(bank.read([item.passage])[0], adapter.values, rtol=1e-2, atol=1e-3)
    settings = PragConfig(name="prag", bank=config.bank.uri)
    settings.check()
    method = settings.open(load_language_model(config.model, "cpu"))
    evidence = Evidence(open_question("Who?"), tuple(item.passage for item in items[:3]))
    (plan,) = method.plan([evidence], method.open_atoms())
    assert len(plan.updates) == 1
    assert plan.notes == ()
    made = untrained_translator(lm, tmp_path / "translator", bank.manifest.parsed_subspace())
    generated = adapters(lab, tmp_path / "generated", f"translator={tmp_path}/translator")
    assert train_adapters.train(generated).manifest.translator == made.digest
    stored = BankReader(generated.bank.uri)
    assert len(stored) == PASSAGES
    # The workers have another number of threads than this process: rounding of float32.
    asked = [item.passage for item in items[:2]]
    expected = torch.stack([made.lora_of(lm, passage) for passage in asked])
    torch.testing.assert_close(stored.read(asked), expected, rtol=1e-5, atol=1e-6)


def test_a_stopped_job_trains_no_block_twice_and_other_questions_are_other_adapters(lab: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    config, items = adapters(lab, tmp_path / "bank"), list(read_augmented(str(lab)))
    lines = [json.dumps(item.to_record()).encode() for item in items[:4]]
    block = pa.table({"line": lines, "problem": [""] * 4, "read_bytes": [1] * 4})
    first = AdapterActor(config.model_dump(mode="json"), None)(block)
    assert first["failure"].drop_null().to_pylist() == []
    trained = AdapterActor(config.model_dump(mode="json"), None)
    trained.extract = _fail  # type: ignore[method-assign, assignment]
    assert trained(block)["shard"].to_pylist() == first["shard"].to_pylist(), "its receipt was found"
    changed = [line.replace(items[0].pairs[0].answer.encode(), b"nowhere") for line in lines]
    with pytest.raises(RuntimeError, match="killed"):
        trained(block.set_column(0, "line", [changed]))


def test_adapters_upon_a_static_lora_are_for_it_alone(lab: Path, tmp_path: Path) -> None:
    half = ["model.subspace.rank=8", "model.subspace.alpha=16"]
    for name, seed in (("static", 0), ("other", 5)):
        finetune_in_process(finetuning(lab, tmp_path / name, *half, f"seed={seed}")).save(tmp_path / name)
    config = adapters(lab, tmp_path / "bank", f"static={tmp_path}/static")
    train_adapters.run(config)
    warm = PragOnLoraConfig(name="prag-warm", bank=config.bank.uri, adapter=str(tmp_path / "static"))
    warm.check()
    with refused(MethodError, "adapters_of_another_base"):
        warm.model_copy(update={"adapter": str(tmp_path / "other")}).check()


def augmenting(output: Path, *values: str) -> AugmentConfig:
    common = ["import_from=null", f"output={output}", *values]
    return load_settings(AugmentConfig, builtin_config("jobs/augment-lab.yaml"), common)


def test_tasks_and_a_model_that_cannot_write_lists(lab: Path, tmp_path: Path) -> None:
    line = augment.run(augmenting(tmp_path / "a", f"tasks={lab}/tasks.jsonl", "pairs=2"))
    made = list(read_augmented(str(tmp_path / "a")))
    assert line.startswith(f"augmented passages at {tmp_path}/a: {len(made)} of {len(made)}, with {2 * len(made)} ")
    (tmp_path / "c.jsonl").write_text('not json\n{"id": "a", "title": "Les", "text": "Les was born in Rome."}\n')
    model = load_settings(FinetuneConfig, builtin_config("jobs/finetune-lab.yaml")).model.model_dump_json()
    short = ["max_new_tokens=8", "retries=1", 'rewrite_prompt="{passage}"', 'pairs_prompt="{passage}"']
    with refused(SynthesisError, "nothing_written", passages=2):
        augment.run(augmenting(tmp_path / "b", f"corpus={tmp_path}/c.jsonl", f"model={model}", *short))
    failed = [json.loads(line) for line in (tmp_path / "b" / "failed.jsonl").read_text().splitlines()]
    assert [(item["id"], item["reason"].split(":")[0]) for item in failed] == [
        ("not json", "not a passage"),
        ("a", "no valid JSON list of questions and answers"),
    ]
    assert failed[1]["tries"] == 2


def test_a_predictor_is_trained_on_an_adapter_resumed_and_asked(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [f"tasks={lab}/tasks.jsonl", f"output={tmp_path}/base", "optimizer.steps=2", "optimizer.batch_size=2"]
    w0 = load_settings(FinetuneConfig, builtin_config("jobs/finetune-rag-gd-lab.yaml"), base)
    finetune_in_process(w0).save(w0.output)
    values = [f"tasks=[{lab}/tasks.jsonl]", f"adapter={w0.output}", f"output={tmp_path}/made", "contexts=4"]
    values += ["optimizer.steps=4", "optimizer.batch_size=2", "inner.steps=1", "checkpoints.every=2", "context.k=1"]
    config = load_settings(PredictorConfig, builtin_config("jobs/predictor-lab.yaml"), values)
    with monkeypatch.context() as patch:
        patch.setattr(train_runner, "checkpoint_of", _fail)
        with pytest.raises(RuntimeError, match="killed"):
            train_predictor.run(config)
    line = train_predictor.run(config)
    made, alone = UpdatePredictor.load(config.output), predictor_in_process(config)
    assert line.startswith(
        f"predictor {made.digest} at {config.output}: {made.notes['parameters']} parameters (7.4% of "
    )
    for name, value in alone.tensors().items():
        torch.testing.assert_close(made.tensors()[name], value, rtol=1e-3, atol=1e-5)
    settings = RagGdConfig(name="rag-gd", adapter=w0.output, predictor=config.output)
    settings.check()
    shown = tuple(replace(open_question(f"Who is number {n}?"), answers=(f"a{n}",)) for n in range(3))
    method = settings.open(load_language_model(config.model, "cpu"))
    (plan,) = method.plan([Evidence(open_question("Who?"), demonstrations=shown)], method.open_atoms())
    assert not torch.equal(plan.updates[0].vector, StaticLora.load(w0.output).values)
