"""Training the lab's base model from scratch: its structured start, the curriculum, the loss."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from regrad.lab.config import LabPretrainConfig
from regrad.lab.pretraining.contexts import ANSWER, CURRICULUM, NO_LOSS, ContextSampler, TrainingSequence
from regrad.lab.tokenizer import BOS_ID, EOS_ID, PAD_ID
from regrad.lab.world import World

_FREQUENCIES = 4
_SHARPNESS = 1.05


def new_base(
    vocabulary: int, hidden: int, layers: int, heads: int, ffn: int, rope_theta: float = 1e5
) -> LlamaForCausalLM:
    """A freshly initialised tiny Llama with the structured start (seeded by torch's global generator)."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.08,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    _structure(model, hidden // heads, rope_theta)
    return model


@torch.no_grad()
def _structure(model: LlamaForCausalLM, head_dim: int, rope_theta: float) -> None:
    model.model.embed_tokens.weight[:, 0] = 0.5
    attention = model.model.layers[0].self_attn
    frequency = 1 / (rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim))[:_FREQUENCIES]
    for head, offset in ((0, 1), (1, 2)):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        query, key = torch.zeros(head_dim), torch.zeros(head_dim)
        query[:_FREQUENCIES] = _SHARPNESS
        key[:_FREQUENCIES] = _SHARPNESS * torch.cos(frequency * offset)
        key[head_dim // 2 : head_dim // 2 + _FREQUENCIES] = _SHARPNESS * torch.sin(frequency * offset)
        attention.q_proj.weight[rows] *= 0.25
        attention.k_proj.weight[rows] *= 0.25
        attention.q_proj.weight[rows, 0] = query
        attention.k_proj.weight[rows, 0] = key
    for layer in model.model.layers[2:]:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


logger = logging.getLogger(__name__)

_TOKENS_PER_CONTEXT = (125, 165, 230, 300)
_AUXILIARY_LAYER = 2
_MINIMUM_STEPS_PER_LEVEL = 60


@dataclass
class Progress:
    """What the progress callback gets: exponential averages of answer accuracy by level, and the losses."""

    step: int
    steps: int
    level: int
    seconds: float
    averages: dict[str, float]


class EntityProbe(torch.nn.Module):
    """The auxiliary loss: a middle hidden state at a value or question names the person (discarded afterwards)."""

    def __init__(self, hidden: int, names: Tensor, vocabulary: int) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(hidden, 2 * hidden, bias=False)
        torch.nn.init.normal_(self.projection.weight, std=0.088)
        self._names = names
        self._index = torch.full((vocabulary,), -1).scatter_(0, names, torch.arange(len(names)))

    def loss(self, hidden_BTD: Tensor, embeddings_VD: Tensor, batch: list[TrainingSequence]) -> Tensor:
        """Mean cross-entropy of first and last name at all entity positions."""
        rows = [(i, *entity) for i, sequence in enumerate(batch) for entity in sequence.entities]
        where = torch.tensor(rows)
        state = hidden_BTD[where[:, 0], where[:, 1]]
        state = state * torch.rsqrt(state.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        first, last = self.projection(state).chunk(2, -1)
        names_ND = embeddings_VD[self._names]
        logits = torch.cat([F.linear(first, names_ND), F.linear(last, names_ND)]).float()
        return F.cross_entropy(logits, self._index[torch.cat([where[:, 2], where[:, 3]])])


class Pretrainer:
    """Trains one base model; `run` returns it. Its state is only in this object: nothing is written."""

    def __init__(self, config: LabPretrainConfig, world: World, tokenizer: PreTrainedTokenizerBase) -> None:
        torch.manual_seed(config.seed)
        self._config = config
        self._rng = random.Random(5 + config.seed)
        self._sampler = ContextSampler(world, tokenizer, self._rng)
        self.model: LlamaForCausalLM = new_base(len(tokenizer), config.hidden, config.layers, config.heads, config.ffn)
        names = torch.tensor([self._sampler.token[name] for name in world.first_names + world.last_names])
        self._probe = EntityProbe(config.hidden, names, len(tokenizer))
        self._optimizer = self._make_optimizer()
        self._averages: dict[str, float] = {}
        self._level, self._since = 0, 0

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> LlamaForCausalLM:
        """Train for `config.steps` steps, calling `progress` every hundred."""
        started = time.monotonic()
        for step in range(self._config.steps):
            self._set_learning_rate(step)
            self._step()
            self._advance(step)
            if step % 100 == 99 or step + 1 == self._config.steps:
                elapsed = time.monotonic() - started
                progress(Progress(step + 1, self._config.steps, self._level, elapsed, dict(self._averages)))
        return self.model.eval()

    def _make_optimizer(self) -> torch.optim.AdamW:
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [*(p for p in self.model.parameters() if p.dim() <= 1), *self._probe.parameters()]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self._config.lr, betas=(0.9, 0.98))

    def _set_learning_rate(self, step: int) -> None:
        config = self._config
        remaining = 1 - step / config.steps
        scale = min(1.0, (step + 1) / 100) * min(1.0, max(0.02, remaining / config.decay_fraction))
        for group in self._optimizer.param_groups:
            group["lr"] = config.lr * scale

    def _step(self) -> None:
        config, level = self._config, self._pick_level()
        self._optimizer.zero_grad()
        count = max(4, config.tokens_per_step // _TOKENS_PER_CONTEXT[level])
        contexts = [self._sampler.context(CURRICULUM[level], config.questions_per_context) for _ in range(count)]
        accuracy = self._accumulate(contexts, answer_weight=1.0, text_weight=0.3, probe=True)
        self._average(f"level{level}", accuracy)
        memory = [self._sampler.memory_question() for _ in range(config.memory_questions)]
        self._average("memory", self._accumulate(memory, answer_weight=1.0, text_weight=0.1))
        self._accumulate([self._sampler.document() for _ in range(config.documents)], 0.0, 0.5)
        torch.nn.utils.clip_grad_norm_([*self.model.parameters(), *self._probe.parameters()], 1.0)
        self._optimizer.step()

    def _pick_level(self) -> int:
        if self._level == 0 or self._rng.random() < 0.75:
            return self._level
        return self._rng.randrange(self._level)

    def _advance(self, step: int) -> None:
        self._since += 1
        reached = self._averages.get(f"level{self._level}", 0.0) > self._config.advance_at
        if self._level + 1 < len(CURRICULUM) and self._since > _MINIMUM_STEPS_PER_LEVEL and reached:
            self._level, self._since = self._level + 1, 0
            logger.info("curriculum level %d at step %d", self._level, step + 1)

    def _average(self, key: str, value: float) -> None:
        self._averages[key] = value if key not in self._averages else 0.95 * self._averages[key] + 0.05 * value

    def _accumulate(
        self, batch: list[TrainingSequence], answer_weight: float, text_weight: float, probe: bool = False
    ) -> float:
        """Add this batch's gradients; returns the accuracy on its answers (0 when it has none)."""
        ids, kinds = _pad(batch)
        output = self.model.model(ids[:, :-1], output_hidden_states=probe)
        wanted = kinds[:, 1:] != NO_LOSS
        logits = F.linear(output.last_hidden_state[wanted], self.model.lm_head.weight)
        extra = self._probe_loss(output, batch) if probe else 0.0
        targets, answers = ids[:, 1:][wanted], kinds[:, 1:][wanted] == ANSWER
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss = _weighted(losses, answers, answer_weight) + _weighted(losses, ~answers, text_weight) + extra
        loss.backward()  # type: ignore[union-attr]
        hits = (logits.argmax(-1) == targets)[answers]
        return hits.float().mean().item() if len(hits) else 0.0

    def _probe_loss(self, output: object, batch: list[TrainingSequence]) -> Tensor:
        hidden = output.hidden_states[_AUXILIARY_LAYER]  # type: ignore[attr-defined]
        return self._probe.loss(hidden, self.model.lm_head.weight, batch)


def _weighted(losses: Tensor, mask: Tensor, weight: float) -> Tensor | float:
    return weight * losses[mask].mean() if weight and bool(mask.any()) else 0.0


def _pad(batch: list[TrainingSequence]) -> tuple[Tensor, Tensor]:
    length = max(len(sequence.ids) for sequence in batch)
    ids = torch.full((len(batch), length), PAD_ID)
    kinds = torch.full((len(batch), length), NO_LOSS)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        kinds[row, : len(sequence.kinds)] = torch.tensor(sequence.kinds)
    return ids, kinds
