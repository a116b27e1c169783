"""configs/papers: every file is valid, and says what the releases' own code and configurations say."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrad.bank.config import BuildConfig
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.evaluation.config import EvalConfig
from regrad.models.config import ModelConfig
from regrad.prompts import PromptFormat
from regrad.retrieval.config import Bm25SearchConfig, IndexConfig
from regrad.settings import Settings, load_settings
from regrad.training.lora.config import AdaptersConfig, AugmentConfig
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.task_files.config import TasksConfig

PAPERS = Path(__file__).parents[3] / "configs" / "papers"
KINDS: dict[str, type[Settings]] = {
    "model": ModelConfig,
    "index": IndexConfig,
    "tasks": TasksConfig,
    "train": MetaTrainConfig,
    "build": BuildConfig,
    "eval": EvalConfig,
    "augment": AugmentConfig,
    "adapters": AdaptersConfig,
}
FILES = sorted(PAPERS.glob("*/*.yaml"))
PASSAGES = [Passage("best", "A title", "The best."), Passage("next", "A title", "The next.")]
SYSTEM = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n"
USER = "\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\nAnswer: "
CONTEXT = "####CONTEXT begin####\nPassage 0: The best.\nPassage 1: The next.\n####CONTEXT end####\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_file_is_valid(path: Path) -> None:
    load_settings(KINDS[path.stem], path)


def test_every_paper_is_complete() -> None:
    files = {
        folder.name: {path.stem for path in folder.glob("*.yaml")} for folder in PAPERS.iterdir() if folder.is_dir()
    }
    regrad = {"model", "index", "tasks", "train", "build", "eval"}
    prag = {"model", "index", "augment", "adapters", "eval"}
    assert {name for name, stems in files.items() if stems >= regrad} == {
        f"regrad-llama-{n}" for n in ("1b", "3b", "8b")
    }
    assert {name for name, stems in files.items() if stems >= prag} == {"prag-llama-1b", "prag-llama-8b"}


@pytest.mark.parametrize(
    ("size", "rank", "layers", "numbers"),
    [("1b", 16, range(8, 16), 3_932_160), ("3b", 8, range(14, 28), 3_784_704), ("8b", 4, range(16, 32), 3_538_944)],
)
def test_the_subspace_is_the_published_one(size: str, rank: int, layers: range, numbers: int) -> None:
    hidden, inner = {"1b": (2048, 8192), "3b": (3072, 8192), "8b": (4096, 14336)}[size]
    model = load_settings(ModelConfig, PAPERS / f"regrad-llama-{size}" / "model.yaml")
    assert (model.subspace.rank, model.subspace.alpha, model.subspace.layers) == (rank, 2.0 * rank, tuple(layers))
    assert len(layers) * 3 * rank * (hidden + inner) == numbers


@pytest.mark.parametrize("size", ["1b", "3b", "8b"])
def test_training_is_the_releases(size: str) -> None:
    train = load_settings(MetaTrainConfig, PAPERS / f"regrad-llama-{size}" / "train.yaml")
    optimizer, inner = train.optimizer, train.inner
    assert (inner.initial_step_size, inner.step_size_mode, inner.step_size_space) == (0.01, "tie", "absolute")
    assert (optimizer.lr, optimizer.step_size_lr, optimizer.clip, optimizer.batch_size) == (4e-4, None, 0.5, 16)
    assert (optimizer.weight_decay, optimizer.step_size_weight_decay, optimizer.warmup_start) == (0.01, 0.01, 0.01)
    assert (train.shape.k, train.shape.questions, train.scoring.rules, train.seed) == (3, 1, "hotpotqa", 42)


def test_the_prompts_of_regrad_are_the_releases() -> None:
    prompts = load_settings(ModelConfig, PAPERS / "regrad-llama-1b" / "model.yaml").prompts
    shown = prompts.ordered(PASSAGES)
    concise = "Your answer should be concise, which means it must be "
    helpful = "You are a helpful AI assistant who is ready to answer user's question"
    according = f"{helpful} according to the CONTEXT. \n{concise}"
    phrase = "a short phrase or a single word, and sentences are not allowed!"
    question = Question("q", "Who?", ("me",))
    assert prompts.prompt_for(question, shown) == f"{SYSTEM}{CONTEXT}{according}{phrase}{USER}Who?{ASSISTANT}"
    assert prompts.prompt_for(question) == f"{SYSTEM}{helpful}. \n{concise}{phrase}{USER}Who?{ASSISTANT}"
    closed = Question("q", "Is it?", ("yes",), kind="yes-no")
    assert (
        prompts.prompt_for(closed, shown) == f"{SYSTEM}{CONTEXT}{according}'yes' or 'no' only!{USER}Is it?{ASSISTANT}"
    )
    assert prompts.prompt_for(closed) == f"{SYSTEM}{helpful}. \nAnswer only 'yes' or 'no'!{USER}Is it?{ASSISTANT}"
    choice = Question("q", "Held:", ("b",), kind="choice", choices=("a", "b", "c", "d", "e"))
    options = "Choices:\nA. a\nB. b\nC. c\nD. d\nE. e\n"
    asked = prompts.prompt_for(choice)
    assert asked.endswith(f"{USER}Held:\n{options}{ASSISTANT}")
    assert "Always answer ONLY with the option letter: the final answer is X, where X ∈ {A, B, C, D, E}." in (
        prompts.prompt_for(choice, shown)
    )
    assert prompts.answer_text("me") == "me\n" and not prompts.end_token
    assert prompts.atom_text(PASSAGES[0]) == "The best."


def test_the_prompts_of_prag_are_the_releases() -> None:
    prompts = load_settings(ModelConfig, PAPERS / "prag-llama-1b" / "model.yaml").prompts
    knowledge = "You should answer the question by referring to the knowledge provided below "
    knowledge += "and integrating your own knowledge."
    question = Question("q", "Who?", ("me",))
    shown = "Passage 1: The best.\nPassage 2: The next.\n"
    assert prompts.prompt_for(question, prompts.ordered(PASSAGES)) == f"{knowledge}\n{shown}\n\nQuestion: Who?"
    assert prompts.prompt_for(question) == f"{knowledge}\n\n\nQuestion: Who?"
    assert prompts.answer_start + prompts.answer_text("me") == "The answer is me."


def test_the_prompts_of_prags_reasoning_are_the_releases() -> None:
    prompts = load_settings(PromptFormat, PAPERS / "prompts-prag-reasoning.yaml")
    solved = [Question("d", "Which?", ("As A is B, the answer is B.",))]
    asked = prompts.prompt_for(Question("q", "Who?", ("me",)), PASSAGES, demonstrations=solved)
    start, rest = asked.split("Here are some examples about how to answer the questions.\n")
    assert start.endswith("Please follow the format of the example I provided above.\n")
    assert rest == (
        "Question: Which?\nAnswer: As A is B, the answer is B.\n\n"
        "Here are some reference.\nPassage 1: The best.\nPassage 2: The next.\n\n\n"
        "Let's think step by step. Answer the questions in the same format as above.\nQuestion: Who?"
    )
    alone = prompts.prompt_for(Question("q", "Who?", ("me",)), (), demonstrations=solved)
    assert alone == asked.replace("Passage 1: The best.\nPassage 2: The next.\n", "")
    assert prompts.answer_start + prompts.answer_text("It is me.") == "Answer: It is me."


def test_adapters_are_trained_as_prag_does() -> None:
    adapter = load_settings(AdaptersConfig, PAPERS / "prag-llama-8b" / "adapters.yaml").adapter
    assert (adapter.rank, adapter.alpha, adapter.lr, adapter.weight_decay, adapter.epochs) == (2, 32, 3e-4, 0.01, 1)


def test_passages_are_found_as_by_elasticsearch() -> None:
    for path in PAPERS.glob("*/eval.yaml"):
        for one in load_settings(EvalConfig, path).sets:
            found = one.passages.retrieval.bm25
            assert (found.k1, found.b, found.weights) == (1.2, 0.75, {"title": 1.0, "text": 1.0})
            assert (found.combine, found.tie) == ("best", 0.5)
            assert isinstance(found, Bm25SearchConfig) and one.rules in ("hotpotqa", None)
