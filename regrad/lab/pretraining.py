"""The lab's base model from scratch: its structured start, the curriculum, the losses, and its scores."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from regrad.evaluation.metrics import exact_match
from regrad.inference.decoding import GenerationRequest, generate
from regrad.lab.config import LabPretrainConfig
from regrad.lab.contexts import ANSWER, CURRICULUM, NO_LOSS, ContextSampler, TrainingSequence
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.tokenizer import BOS_ID, EOS_ID, PAD_ID, train_tokenizer
from regrad.lab.wording import ATTRIBUTES, LAB_PROMPTS
from regrad.lab.world import Namesakes, World, question
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.storage import check_replaceable, directory_writer

logger = logging.getLogger(__name__)

QUALITY = "quality.json"

_FREQUENCIES = 4
_SHARPNESS = 1.05
_TOKENS_PER_CONTEXT = (125, 165, 230, 300)
_AUXILIARY_LAYER = 2
_MINIMUM_STEPS_PER_LEVEL = 60
_BATCH = 64


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
    _give_structure(model, hidden // heads, rope_theta)
    return model


@torch.no_grad()
def _give_structure(model: LlamaForCausalLM, head_dim: int, rope_theta: float) -> None:
    """Start two heads that look back by one and two tokens, and later layers that look at hidden states like theirs.

    They are what copying an answer from a passage is built of; training shapes them further.
    """
    # Dimension 0 of all embeddings is the same number, so that queries and keys have something constant to read.
    model.model.embed_tokens.weight[:, 0] = 0.5
    attention = model.model.layers[0].self_attn
    frequency = 1 / (rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim))[:_FREQUENCIES]
    for head, offset in ((0, 1), (1, 2)):
        # RoPE turns queries and keys by their positions. A constant query and a constant key that is turned back by
        # `offset` agree most at that distance, where all cosines are 1.
        rows = slice(head * head_dim, (head + 1) * head_dim)
        query, key = torch.zeros(head_dim), torch.zeros(head_dim)
        query[:_FREQUENCIES] = _SHARPNESS
        key[:_FREQUENCIES] = _SHARPNESS * torch.cos(frequency * offset)
        key[head_dim // 2 : head_dim // 2 + _FREQUENCIES] = _SHARPNESS * torch.sin(frequency * offset)
        attention.q_proj.weight[rows] *= 0.25
        attention.k_proj.weight[rows] *= 0.25
        attention.q_proj.weight[rows, 0] = query
        attention.k_proj.weight[rows, 0] = key
    # With equal projections a query agrees most with the keys of similar hidden states.
    for layer in model.model.layers[2:]:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


@dataclass
class Progress:
    """How far pre-training is: the step, the level, and moving averages of answer accuracy by level."""

    step: int
    steps: int
    level: int
    seconds: float
    averages: dict[str, float]


class EntityProbe(torch.nn.Module):
    """The auxiliary loss: a middle hidden state at a value or question names the person. It is discarded afterwards."""

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
    """Trains one base model; `run` returns it. Nothing is written."""

    def __init__(self, config: LabPretrainConfig, world: World, tokenizer: PreTrainedTokenizerBase) -> None:
        torch.manual_seed(config.seed)
        self._config = config
        self._rng = random.Random(5 + config.seed)
        self._sampler = ContextSampler(world, tokenizer, self._rng)
        self.model: LlamaForCausalLM = new_base(len(tokenizer), config.hidden, config.layers, config.heads, config.ffn)
        names = torch.tensor([self._sampler.token[name] for name in world.first_names + world.last_names])
        self._probe = EntityProbe(config.hidden, names, len(tokenizer))
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [*(p for p in self.model.parameters() if p.dim() <= 1), *self._probe.parameters()]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
        self._averages: dict[str, float] = {}
        self._level = 0
        self._steps_at_level = 0

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> LlamaForCausalLM:
        """Train for `config.steps` steps, calling `progress` every hundred."""
        started = time.monotonic()
        config = self._config
        for step in range(config.steps):
            # Linear warm-up over 100 steps; over the last `decay_fraction` of the run down to 2%.
            scale = min(1.0, (step + 1) / 100) * min(1.0, max(0.02, (1 - step / config.steps) / config.decay_fraction))
            for group in self._optimizer.param_groups:
                group["lr"] = config.lr * scale
            self._step()
            self._advance(step)
            if step % 100 == 99 or step + 1 == config.steps:
                elapsed = time.monotonic() - started
                progress(Progress(step + 1, config.steps, self._level, elapsed, dict(self._averages)))
        return self.model.eval()

    def _step(self) -> None:
        """One update on contexts (of an earlier level now and then), memory questions and documents."""
        config, level = self._config, self._level
        if level > 0 and self._rng.random() >= 0.75:
            level = self._rng.randrange(level)
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

    def _advance(self, step: int) -> None:
        self._steps_at_level += 1
        reached = self._averages.get(f"level{self._level}", 0.0) > self._config.advance_at
        if self._level + 1 < len(CURRICULUM) and self._steps_at_level > _MINIMUM_STEPS_PER_LEVEL and reached:
            self._level += 1
            self._steps_at_level = 0
            logger.info("curriculum level %d at step %d", self._level, step + 1)

    def _average(self, key: str, value: float) -> None:
        self._averages[key] = value if key not in self._averages else 0.95 * self._averages[key] + 0.05 * value

    def _accumulate(
        self, batch: list[TrainingSequence], answer_weight: float, text_weight: float, probe: bool = False
    ) -> float:
        """Add this batch's gradients; returns the accuracy on its answers (0 when it has none)."""
        length = max(len(sequence.ids) for sequence in batch)
        ids = torch.full((len(batch), length), PAD_ID)
        kinds = torch.full((len(batch), length), NO_LOSS)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
            kinds[row, : len(sequence.kinds)] = torch.tensor(sequence.kinds)
        output = self.model.model(ids[:, :-1], output_hidden_states=probe)
        wanted = kinds[:, 1:] != NO_LOSS
        logits = F.linear(output.last_hidden_state[wanted], self.model.lm_head.weight)
        extra: Tensor | float = 0.0
        if probe:
            extra = self._probe.loss(output.hidden_states[_AUXILIARY_LAYER], self.model.lm_head.weight, batch)
        targets, answers = ids[:, 1:][wanted], kinds[:, 1:][wanted] == ANSWER
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss = _weighted(losses, answers, answer_weight) + _weighted(losses, ~answers, text_weight) + extra
        loss.backward()  # type: ignore[union-attr]
        hits = (logits.argmax(-1) == targets)[answers]
        return hits.float().mean().item() if len(hits) else 0.0


def _weighted(losses: Tensor, mask: Tensor, weight: float) -> Tensor | float:
    return weight * losses[mask].mean() if weight and bool(mask.any()) else 0.0


def pretrain_base(config: LabPretrainConfig) -> str:
    """Train and write `config.output` (Hugging Face format plus `quality.json`); returns the closing line."""
    check_replaceable(config.output, QUALITY)
    torch.set_num_threads(config.threads)
    world, started = World(), time.monotonic()
    tokenizer = train_tokenizer(world)
    model = Pretrainer(config, world, tokenizer).run(_log)
    seconds = time.monotonic() - started
    with directory_writer(config.output, QUALITY) as folder:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        quality = {"seconds": round(seconds), **measure(str(folder), world)}
        (folder / QUALITY).write_text(json.dumps(quality, indent=1) + "\n")
    scores = ", ".join(f"{name} {value}" for name, value in quality.items() if name != "seconds")
    return f"base model at {config.output}: {config.steps} steps in {seconds:.0f} s; exact match {scores}"


def measure(path: str, world: World, questions: int = 400) -> dict[str, float]:
    """Exact match on held-out people with 0, 1 and 3 passages to read, and on memorised people with none.

    The distractors among three passages share a name piece with the person asked about, where there are such people.
    """
    lm = load_language_model(ModelConfig(path=path, prompts=LAB_PROMPTS, subspace=SubspaceConfig(layers=(0,))), "cpu")
    rng = random.Random(3)
    corpus = {passage.id: passage for passage in held_out_corpus(world)}
    people = {person.passage_id: person for person in world.held_out}
    asked, namesakes = held_out_questions(world, questions), Namesakes(world.held_out)
    prompts: dict[str, list[str]] = {"direct": [], "rag_k1": [], "rag_k3": []}
    for item in asked:
        with_distractors = {item.passage_id}
        for _ in range(50):  # people who share a name piece, unless 50 draws find too few
            if len(with_distractors) < 3:
                with_distractors.add(namesakes.sample(people[item.passage_id], rng).passage_id)
        while len(with_distractors) < 3:
            with_distractors.add(rng.choice(list(people)))
        ids = sorted(with_distractors)
        rng.shuffle(ids)
        prompts["direct"].append(LAB_PROMPTS.prompt(item.question))
        prompts["rag_k1"].append(LAB_PROMPTS.prompt(item.question, [corpus[item.passage_id]]))
        prompts["rag_k3"].append(LAB_PROMPTS.prompt(item.question, [corpus[i] for i in ids]))
    answers = [item.answers[0] for item in asked]
    scores = {name: _score(lm, texts, answers) for name, texts in prompts.items()}
    pairs = [(rng.choice(world.memorised), rng.choice(ATTRIBUTES)) for _ in range(questions)]
    memory = [LAB_PROMPTS.prompt(question(person, attribute, rng)) for person, attribute in pairs]
    return {**scores, "memorised": _score(lm, memory, [person.values[attribute] for person, attribute in pairs])}


def _score(lm: LanguageModel, prompts: list[str], answers: list[str]) -> float:
    hits = 0
    for start in range(0, len(prompts), _BATCH):
        batch = generate(lm, [GenerationRequest(prompt) for prompt in prompts[start : start + _BATCH]])
        hits += sum(exact_match(item.text, [answer]) for item, answer in zip(batch, answers[start:], strict=False))
    return round(hits / len(prompts), 4)


def _log(progress: Progress) -> None:
    averages = "  ".join(f"{name} {value:.2f}" for name, value in progress.averages.items())
    logger.info("step %d/%d  %.0f s  answer accuracy: %s", progress.step, progress.steps, progress.seconds, averages)
