"""Training DyPRAG's translator: the three losses, what one step updates, and one worker's run from start to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from regrad.errors import MethodError
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Subspace
from regrad.training.callbacks import Listener, Silent
from regrad.training.checkpoint import TrainState, load_module_tensors, module_step, module_tensors
from regrad.training.loop import StepResult, train_on
from regrad.training.lora.examples import example_batch
from regrad.training.lora.in_force import check_trained_on_base_alone
from regrad.training.translator.artifact import Translator, state_of
from regrad.training.translator.config import TranslatorConfig
from regrad.training.translator.network import TranslatorNetwork
from regrad.training.translator.samples import Sample, Samples, adapters_to_imitate
from regrad.training.workers import Workers

TRANSLATOR = "translator"


def losses_of(
    lm: LanguageModel, subspace: Subspace, made_P: Tensor, sample: Sample, scaled: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The three losses of a generated LoRA, before their weights: language, divergence, distance.

    Cross-entropy is the mean over the sequence; the KL divergence of the generated LoRA's next tokens from the trained
    adapter's is the sum over it, which `batchmean` of a batch of one is in DyPRAG's code. Differentiable in `made_P`.
    """
    adapter_P, batch = sample.adapter.to(lm.device), example_batch(lm, [sample.sequence])
    acting = subspace if scaled else Subspace(subspace.modules, subspace.rank, 1.0)

    def log_shares(within: Subspace, flat_P: Tensor) -> Tensor:
        with lm.applied({within: flat_P}):
            scores: Tensor = lm.logits(lm.hidden(batch.ids[:, :-1])).log_softmax(-1)[0]
        return scores

    with torch.no_grad():
        wanted_TV = log_shares(subspace, adapter_P)
    found_TV = log_shares(acting, made_P)
    language = functional.nll_loss(found_TV, batch.ids[0, 1:])
    divergence = functional.kl_div(found_TV, wanted_TV, reduction="sum", log_target=True)
    made, trained = subspace.unflatten(made_P), subspace.unflatten(adapter_P)
    distance = torch.stack([functional.mse_loss(made[name], trained[name]) for name in subspace.shapes]).sum()
    return language, divergence, distance


class TranslatorLearner:
    """One worker's side of training a translator: a `Learner` of samples.

    Neither the base model nor the adapters change. Raises `MethodError` if the adapters, or the translator to continue,
    are another model's, or the latter is for other adapters; and `TrainingError` if the batch cannot be shared equally.
    """

    kind = "translator"
    product_name = TRANSLATOR
    remedy = "lower optimizer.lr"

    def __init__(self, lm: LanguageModel, config: TranslatorConfig, workers: Workers = Workers()) -> None:
        workers.check(config.optimizer.batch_size)
        manifest = adapters_to_imitate(config)
        check_trained_on_base_alone(lm, config.bank, manifest)
        self._lm, self._config, self._workers = lm, config, workers
        self._subspace, self._bank = manifest.parsed_subspace(), manifest.fingerprint
        lm.lora_for(self._subspace)  # an imported bank may say only by name what its base was
        self._states = int(lm.text_config.hidden_size)
        self.network = TranslatorNetwork(self._states, self._subspace, config.network, config.seed).to(lm.device)
        if config.start_from:
            self._continue(Translator.load(config.start_from))
        optimizer = config.optimizer
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self._latest = torch.full((3,), torch.nan)
        self._identity = lm.identity()
        self.base = f"{self._identity}+{manifest.label}"
        self.device = lm.device
        self.left_out = 0

    def _continue(self, parent: Translator) -> None:
        parent.check_base(self._lm)
        parent.check_adapters(self._subspace)
        if parent.config != self._config.network:
            raise MethodError(
                f"the translator at {self._config.start_from} has network {parent.config}, but the settings say "
                f"{self._config.network}; set network as it was",
                code="translator_of_another_network",
                uri=self._config.start_from,
            )
        self.network.load_state_dict(parent.network.state_dict())

    def prepare(self, batch: Sequence[Sample], state: TrainState) -> str:
        """See `Learner`; says how large the network is."""
        return f"the translator has {self.network.size:,} parameters" if not state.step else ""

    def step(self, batch: Sequence[Sample], factor: float) -> StepResult:
        """See `Learner`."""
        config = self._config
        weights = torch.tensor([config.losses.language, config.losses.divergence, config.losses.distance])
        weights, parameters = weights.to(self.device), list(self.network.parameters())
        total = torch.zeros(3 + self.network.size, device=self.device)
        for sample in batch:
            # A sequence at a time: its logits are the largest tensor of all.
            state_D = state_of(self._lm, sample.passage, config.max_tokens)
            (made_P,) = self.network(state_D[None])
            losses = torch.stack(losses_of(self._lm, self._subspace, made_P, sample, config.scaled))
            gradients = torch.autograd.grad((weights * losses).sum(), parameters)
            total += torch.cat([losses.detach(), parameters_to_vector(gradients)]) / len(batch)
        total = self._workers.mean(total)
        counts = {"passages": len(batch), "tokens": sum(len(sample.sequence.ids) for sample in batch)}
        if not bool(torch.isfinite(total).all()):
            return StepResult(None, counts)
        self._latest, gradient = total[:3], total[3:]
        optimizer = config.optimizer
        module_step(self.network, self._optimizer, gradient, optimizer.lr * factor, optimizer.clip)
        return StepResult(float((weights * self._latest).sum()), counts)

    def numbers(self) -> Mapping[str, float]:
        """The three losses of the latest step, before it, without their weights."""
        return dict(zip(("language", "divergence", "distance"), self._latest.tolist(), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return module_tensors(self.network, self._optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        load_module_tensors(self.network, self._optimizer, tensors)

    def product(self, state: TrainState) -> Translator:
        """The translator as it is now, with notes on the run; `seconds` is the sum over all workers."""
        config = self._config
        keys = {"bank", "corpus", "start_from", "sequences", "answers", "losses", "optimizer", "seed"}
        notes = {
            "settings": config.model_dump(mode="json", include=keys),
            "parameters": self.network.size,
            "left_out": self.left_out,
            **state.notes(self._workers.count),
        }
        return Translator(
            self._lm.config,
            self._identity,
            self._bank,
            config.scaled,
            config.max_tokens,
            config.network,
            self.network,
            self._states,
            notes,
        )


def translator_worker(
    config: TranslatorConfig,
    listener: Listener,
    device: torch.device | str,
    workers: Workers = Workers(),
    checkpoint: AbstractContextManager[Path | None] = nullcontext(),
) -> Translator:
    """One worker's run, from the start or from a checkpoint.

    Raises `CorpusError` for bad data, and `MethodError` and `TrainingError` as `TranslatorLearner`, `Samples`,
    `Loop.run` and `resume`.
    """
    lm = load_language_model(config.model, device)
    learner, samples = TranslatorLearner(lm, config, workers), Samples(lm, config)
    learner.left_out = samples.left_out
    if samples.left_out:
        listener.note(f"{samples.left_out} passages without an adapter, or without a sequence that fits, are left out")
    return learner.product(train_on(learner, samples, config, listener, workers, checkpoint))


def translator_in_process(config: TranslatorConfig, device: str = "cpu") -> Translator:
    """The job with one worker and no cluster, from start to end; nothing is written, and there are no checkpoints.

    For notebooks: the result's `save` writes what the job would. Raises as `translator_worker` does.
    """
    return translator_worker(config, Silent(), device)
