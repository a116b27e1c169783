"""One meta-training step: the shape of the authors' step against every strategy, in one process.

    python benchmarks/meta_step.py --json meta_step.json        (--quick: under a minute)

The baseline keeps one graph a passage, and makes a second forward pass of every passage whose result is not used, as
the paper's release does. Passages have 200 tokens. Weights are random: time and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import in_turn, peak_bytes, show, write
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from regrad.models.batching import TokenBatch, sequence_losses
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.config import InnerConfig, StrategyConfig
from regrad.training.meta.objective import MetaGradient, Point
from regrad.training.meta.strategies import make_strategy

STRATEGIES = ("graph", "hvp", "difference")
BASELINE = "graph per passage + unused forward"


@dataclass(frozen=True)
class Shape:
    """A Llama's shape."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    rank: int = 16


SMALL = Shape(512, 1536, 8, 8, 8, 4096)
ONE_B = Shape(2048, 8192, 16, 32, 8, 128256)


def random_model(shape: Shape, dtype: str, device: torch.device) -> LanguageModel:
    """A randomly initialised Llama, loaded through the same code as real weights."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    lab = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
        lab.tokenizer.save_pretrained(folder)
        subspace = SubspaceConfig(rank=shape.rank, alpha=2 * shape.rank)
        return load_language_model(
            ModelConfig(path=folder, dtype=dtype, attention="sdpa", subspace=subspace),  # type: ignore[arg-type]
            device,
        )


def random_batch(lm: LanguageModel, passages: int, vocabulary: int, tokens: int = 200) -> MetaBatch:
    """One task: one question on all passages."""
    generator = torch.Generator().manual_seed(passages)
    ids = torch.randint(3, vocabulary, (passages, tokens), generator=generator).to(lm.device)
    question = torch.randint(3, vocabulary, (1, 40), generator=generator).to(lm.device)
    predicted, answered = torch.ones_like(ids, dtype=torch.bool), torch.ones_like(question, dtype=torch.bool)
    predicted[:, 0], answered[:, :32] = False, False
    return MetaBatch(
        TokenBatch(ids, predicted),
        torch.ones(1, passages, device=lm.device),
        TokenBatch(question, answered),
        torch.ones(1, device=lm.device),
    )


def authors_step(lm: LanguageModel, at: Point, batch: MetaBatch, unused_forward: bool = True) -> MetaGradient:
    """Passage by passage, every graph kept, and a second forward pass of each that nobody uses; naive autograd."""
    phi, alpha = at.phi0.detach().requires_grad_(), at.alpha.detach().requires_grad_()
    adapted, unused, inner = phi, [], []
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for row in range(batch.passages.ids.shape[0]):
            passage = batch.passages.take(torch.tensor([row], device=lm.device))
            with lm.lora.applied(phi):
                inner.append(sequence_losses(lm, passage)[0])
                (gradient,) = torch.autograd.grad(inner[-1], phi, create_graph=True)
                if unused_forward:
                    unused.append(sequence_losses(lm, passage))
            adapted = adapted - alpha * gradient
        with lm.lora.applied(adapted):
            loss = sequence_losses(lm, batch.questions).mean()
        phi_gradient, alpha_gradient = torch.autograd.grad(loss, (phi, alpha))
    return MetaGradient(loss.detach(), torch.stack(inner).detach().mean(), phi_gradient, alpha_gradient)


def error(found: MetaGradient, expected: MetaGradient) -> float:
    """The larger relative error of the two gradients."""
    pairs = ((found.phi0, expected.phi0), (found.alpha, expected.alpha))
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def measure(lm: LanguageModel, vocabulary: int, passages: int, repeats: int) -> list[dict[str, Any]]:
    """One row a way of computing the step."""
    phi0 = lm.subspace.initial(0).to(lm.device)
    generator = torch.Generator().manual_seed(1)
    noise: Tensor = 0.01 * torch.randn(phi0.shape[0], generator=generator)
    at = Point(phi0 + noise.to(lm.device), torch.full_like(phi0, 1e-2))
    batch = random_batch(lm, passages, vocabulary)
    runs: dict[str, Callable[[], MetaGradient]] = {BASELINE: lambda: authors_step(lm, at, batch)}
    for name in STRATEGIES:
        strategy = make_strategy(StrategyConfig(name=name, chunk_tokens=256), InnerConfig())  # type: ignore[arg-type]
        runs[name] = lambda strategy=strategy: strategy(lm, at, batch)  # type: ignore[misc]
    checkpointed = StrategyConfig(name="difference", chunk_tokens=256, activation_checkpointing=True)
    recompute = make_strategy(checkpointed, InnerConfig())
    runs["difference, recomputed"] = lambda: recompute(lm, at, batch)
    expected = authors_step(lm, at, batch, unused_forward=False)
    errors = {name: error(run(), expected) for name, run in runs.items()}
    memory = {name: peak_bytes(run, lm.device) for name, run in runs.items()}
    seconds = in_turn(runs, repeats, lm.device)
    return [
        {
            "K": passages,
            "dtype": lm.config.dtype,
            "step": name,
            "seconds": seconds[name],
            "time ratio": seconds[name] / seconds[BASELINE],
            "peak MB": memory[name] / 1e6,
            "memory ratio": memory[name] / memory[BASELINE],
            "relative error": errors[name],
        }
        for name in runs
    ]


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers to quote; memory growth is of the leanest way at K = 5."""
    dtype = rows[0]["dtype"]
    ours = [row for row in rows if row["step"] != BASELINE and row["dtype"] == dtype]
    five = [row for row in ours if row["K"] == 5]
    leanest = min(five, key=lambda row: row["peak MB"])
    peaks = {row["K"]: row["peak MB"] for row in ours if row["step"] == leanest["step"]}
    return {
        "fastest_time_ratio_k5": min(row["time ratio"] for row in five),
        "leanest_memory_ratio_k5": leanest["memory ratio"],
        "leanest_memory_growth_k1_k10": peaks[10] / peaks[1],
        "worst_relative_error": max(row["relative error"] for row in ours),
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer repeats")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = ONE_B if device.type == "cuda" else SMALL
    if arguments.quick:
        shape = Shape(128, 384, 4, 4, 4, 1024)
    rows = []
    for dtype in ("float32", "bfloat16") if device.type == "cuda" else ("float32",):
        lm = random_model(shape, dtype, device)
        for passages in (1, 3, 5, 10):
            rows += measure(lm, shape.vocabulary, passages, 1 if arguments.quick else arguments.repeats)
    show(rows)
    found = figures(rows)
    show([found])
    if arguments.json:
        write(arguments.json, found, rows, device)


if __name__ == "__main__":
    main()
