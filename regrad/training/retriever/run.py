"""One worker's run of training a retriever, its questions, and what is made of the result: indexes."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from regrad.data.content_digests import directory_digest
from regrad.data.corpora import read_passages
from regrad.data.question_sets import read_questions
from regrad.data.questions import Question
from regrad.data.tasks import read_tasks
from regrad.digests import json_digest, records_digest
from regrad.errors import TrainingError
from regrad.methods.artefact_files import artefact_digests
from regrad.models.loading import load_language_model
from regrad.models.local_files import model_digest
from regrad.retrieval.base import CARD as INDEX_CARD
from regrad.retrieval.base import IndexCard, Retriever, check_index, kind_of, read_index_card
from regrad.retrieval.config import EncoderConfig
from regrad.retrieval.dense import DenseRetriever, check_passages_encoder, passages_encoder, with_question_encoder
from regrad.retrieval.encoder_card import FILE as ENCODER_FILE
from regrad.retrieval.encoder_card import read_encoder_card
from regrad.retrieval.reranked import rerank_index
from regrad.storage import Storage, check_replaceable, directory_writer
from regrad.training.callbacks import Listener, Silent
from regrad.training.loop import train_on
from regrad.training.lora.lora_artifact import ADAPTER_CARD
from regrad.training.retriever.artefact import CARD, ENCODER, GENERATOR, PASSAGES, SELECTOR, Trained
from regrad.training.retriever.config import RetrieverTrainConfig, SelectorConfig, lies_in
from regrad.training.retriever.generator import generator_card, load_generator, make_generator
from regrad.training.retriever.learner import NumberedQuestion, RetrieverLearner, open_trained_on
from regrad.training.retriever.likelihood import Likelihood, MethodLikelihood
from regrad.training.retriever.passage_side import Refresher, RefresherHere, other_corpus
from regrad.training.retriever.selector import nothing_found, selector_settings
from regrad.training.workers import Workers

_CORPUS_BLOCK, _COMPARED_PASSAGES = 1_000, 10_000
_ASKED_BLOCK, _COMPARED_QUESTIONS = 256, 10_000
_MODULES, _SELECTOR_CARD = "modules.json", "config.json"  # what sentence-transformers begins to read


def read_asked(config: RetrieverTrainConfig) -> list[NumberedQuestion]:
    """The training questions that have an answer, at most `max_questions`, drawn by the seed, in the files' order.

    Raises `CorpusError` or `EvaluationError` for a bad record, and `TrainingError` if there is none.
    """
    if config.questions is not None:
        found = read_questions(config.questions)
    else:
        found = [item.asked for task in read_tasks(config.tasks or "") for item in task.questions]
    # The same question of the same answers twice is one question: its likelihoods and its chain are shared.
    answered = list(dict.fromkeys(_bare(question) for question in found if question.answers))
    if not answered:
        raise TrainingError(
            f"none of {len(found)} training questions has an answer: there is nothing to train on",
            code="nothing_to_train_on",
            questions=len(found),
        )
    if config.max_questions is not None and config.max_questions < len(answered):
        drawn = random.Random(f"{config.seed}/questions").sample(range(len(answered)), config.max_questions)
        answered = [answered[number] for number in sorted(drawn)]
    return [NumberedQuestion(number, question) for number, question in enumerate(answered)]


def _bare(question: Question) -> Question:
    turns = question.turns
    return Question("", question.question, question.answers, question.kind, question.choices, turns=turns)


def data_digests(config: RetrieverTrainConfig) -> dict[str, Any]:
    """Digests of what the settings name, which a resumed run must find again: the questions and the index, by its card;
    the other indexes; and what the method, the generator and the selector begin with. An index that names others is
    known by their cards, too. What is not used is None, so that a run that did not note it goes on. Raises as reading
    those does."""
    cards = [card.model_dump_json().encode() for _, card in _with_named(config.index)]
    start = config.generator.start_from if config.generator else None
    return {
        "data": records_digest((item.question for item in read_asked(config)), b"".join(cards)),
        "others": [_cards_digest(other.index) for other in config.others] or None,
        "method": artefact_digests(config.method) or None,
        "start_from": directory_digest(start) if start else None,
        "selector": model_digest(config.selector.model) if config.selector else None,
    }


def _cards_digest(index: str) -> str:
    return json_digest([card.model_dump(mode="json") for _, card in _with_named(index)])


def _with_named(index: str) -> Iterator[tuple[str, IndexCard]]:
    """An index, those that it names, and those that these name, each with its card."""
    waiting = [index]
    while waiting:
        place = waiting.pop(0)
        card = read_index_card(place)
        yield place, card
        waiting += kind_of(card).named_indexes(place, card)


MakeRefresher = Callable[[RetrieverTrainConfig, DenseRetriever, Workers], Refresher]
"""What makes new vectors of the index's passages for one worker."""


def _refresher_here(config: RetrieverTrainConfig, retriever: DenseRetriever, workers: Workers) -> Refresher:
    assert config.passages is not None
    return RefresherHere(retriever.blocks(config.passages.part_passages))


def retriever_worker(
    config: RetrieverTrainConfig,
    listener: Listener,
    device: torch.device | str,
    workers: Workers = Workers(),
    checkpoint: AbstractContextManager[Path | None] = nullcontext(),
    refresher: MakeRefresher | None = None,
) -> Trained:
    """One worker's run, from the start or from a checkpoint; vectors are made anew in this process by default.

    Raises `RetrievalError` for an index that cannot be trained on, `TrainingError` as the loop does, and what the
    method and the questions raise.
    """
    asked = read_asked(config)
    with open_trained_on(config, device) as retriever:
        config.method.check()
        lm = load_language_model(config.model, device)
        if config.generator is not None:
            likelihood: Likelihood = make_generator(lm, config)
        else:
            per_token = config.likelihood == "token-mean"
            likelihood = MethodLikelihood(lm, config.method, per_token, config.batch_tokens)
        notes = {
            "objective": config.objective.model_dump(mode="json"),
            "method": config.method.kind,
            "questions": len(asked),
            "settings": config.model_dump(mode="json", include={"k", "temperature", "likelihood", "optimizer", "seed"}),
        }
        refreshing = None
        if config.passages is not None and isinstance(retriever, DenseRetriever):
            refreshing = (refresher or _refresher_here)(config, retriever, workers)
        place = torch.device(device)
        learner = RetrieverLearner(
            config, retriever, likelihood, len(asked), place, lm.identity(), notes, workers, refreshing
        )
        return learner.product(train_on(learner, asked, config, listener, workers, checkpoint))


def check_indexes(config: RetrieverTrainConfig) -> None:
    """Raise what opening the index raises, and `RetrievalError` if one of the `others` has passages of another encoder.

    Before anything is trained. A selector goes with any index, which has to find something for the first 10,000
    questions: `TrainingError` if not; a step looks at its own. `CorpusError` or `TrainingError` if `passages.corpus`
    cannot be read, or is not the index's by its first 10,000 passages; a refresh compares all.
    """
    _check_in_use(config)
    with open_trained_on(config, "cpu") as retriever:
        if config.passages is not None and isinstance(retriever, DenseRetriever):
            _check_corpus(config.passages.corpus, config.index, retriever)
        if config.selector is not None and not isinstance(retriever, DenseRetriever):  # a dense index finds something
            _check_found(config, retriever)
        for other in config.others:
            if isinstance(retriever, DenseRetriever) and config.selector is None:
                check_passages_encoder(other.index, retriever.passages_digest)
            else:
                check_index(other.index)


def _check_in_use(config: RetrieverTrainConfig) -> None:
    """Raise `TrainingError` if a result would take the place of what an index needs: a model, or another index."""
    made = [uri for uri, _ in results_of(config)]
    for index in (config.index, *(other.index for other in config.others)):
        for needed in _needed_by(index):
            for uri in made:
                if lies_in(uri, needed) or lies_in(needed, uri):
                    raise TrainingError(
                        f"{uri} is to be a result of this run, and the index at {index} cannot be searched without "
                        f"{needed}: give the result a place of its own",
                        code="encoder_in_use",
                        uri=uri,
                        index=index,
                    )


def _needed_by(index: str) -> Iterator[str]:
    """The models and indexes that an index names, and those that these name."""
    for place, card in _with_named(index):
        kind = kind_of(card)
        yield from (*kind.named_models(place, card), *kind.named_indexes(place, card))


def _check_found(config: RetrieverTrainConfig, retriever: Retriever) -> None:
    questions = [item.question for item in read_asked(config)[:_COMPARED_QUESTIONS]]
    for start in range(0, len(questions), _ASKED_BLOCK):
        some = questions[start : start + _ASKED_BLOCK]
        for question, hits in zip(some, retriever.search_ids([one.query for one in some], 1), strict=True):
            if not hits:
                raise nothing_found(config.index, question)


def _check_corpus(corpus: str, index: str, retriever: DenseRetriever) -> None:
    indexed = itertools.chain.from_iterable(retriever.blocks(_CORPUS_BLOCK))
    pairs = itertools.zip_longest(indexed, read_passages(corpus))
    for ours, given in itertools.islice(pairs, _COMPARED_PASSAGES):
        if ours != given:
            raise other_corpus(index, (ours or given).id)


IndexAnew = Callable[[str, EncoderConfig, str], str]
"""Makes an index of a corpus with an encoder (the last is for which output); gives the address of the index."""


def write_trained(config: RetrieverTrainConfig, trained: Path, index_anew: IndexAnew) -> int:
    """Write all results of a run: the indexes, the generator and the passages' encoder; gives the indexes' passages.

    Indexes are made anew by `index_anew` if the passages' encoder was trained. Raises as that does, and
    `RetrievalError` if another index's passages are of another encoder.
    """
    write_generator(config, trained)
    if config.selector is not None:
        return _write_reranked(config, config.selector, trained)
    if config.passages is None:
        return write_indexes(config, trained)
    with directory_writer(config.passages.encoder, _MODULES) as folder:
        shutil.copytree(trained / PASSAGES, folder, dirs_exist_ok=True)
    notes = json.loads((trained / CARD).read_text())["notes"]
    count = 0
    corpora = [(config.index, config.passages.corpus, config.output)]
    corpora += [(other.index, other.corpus or "", other.output) for other in config.others]
    for index, corpus, output in corpora:
        # How passages are read stays as the index had it; what changes is the network.
        described = read_encoder_card(Storage(index).read(ENCODER_FILE), index).encoder
        encoder = described.model_copy(update={"path": config.passages.encoder, "question_path": None})
        made = index_anew(corpus, encoder, output)
        count += with_question_encoder(made, trained / ENCODER, passages_encoder(made), output, notes)
    return count


def _write_reranked(config: RetrieverTrainConfig, selector: SelectorConfig, trained: Path) -> int:
    """The selector, and over each index one whose first passages it orders."""
    with directory_writer(selector.output, _SELECTOR_CARD) as folder:
        shutil.copytree(trained / SELECTOR, folder, dirs_exist_ok=True)
    places = [(config.index, config.output), *((other.index, other.output) for other in config.others)]
    return sum(rerank_index(selector_settings(config, index, selector.output), output) for index, output in places)


def check_outputs(config: RetrieverTrainConfig) -> None:
    """Raise `StorageError` if something that is not ours is where a result goes; before anything is trained."""
    for uri, card in results_of(config):
        check_replaceable(uri, card)
    if config.generator is not None and config.generator.start_from is not None:
        ADAPTER_CARD.read(config.generator.start_from)


def results_of(config: RetrieverTrainConfig) -> list[tuple[str, str]]:
    """All that a run writes: directories, each with the file that shows that it is there."""
    results = [(uri, INDEX_CARD) for uri in (config.output, *(other.output for other in config.others))]
    if config.passages is not None:
        results.append((config.passages.encoder, _MODULES))
    if config.selector is not None:
        results.append((config.selector.output, _SELECTOR_CARD))
    if config.generator is not None:
        results.append((config.generator.output, generator_card(config)))
    return results


def write_generator(config: RetrieverTrainConfig, trained: Path) -> None:
    """Write the generator that was trained, if one was, at its output."""
    if config.generator is not None:
        load_generator(config, str(trained / GENERATOR)).save(config.generator.output)


def write_indexes(config: RetrieverTrainConfig, trained: Path) -> int:
    """Write `output`, and each of `others`, with the question encoder of this directory; gives the passages of all.

    Raises `RetrievalError` if another index's passages are of another encoder.
    """
    card = json.loads((trained / CARD).read_text())
    places = [(config.index, config.output), *((other.index, other.output) for other in config.others)]
    return sum(
        with_question_encoder(index, trained / ENCODER, card["passages_digest"], output, card["notes"])
        for index, output in places
    )


def train_retriever_in_process(config: RetrieverTrainConfig, device: str = "cpu") -> Trained:
    """The job with one worker and no cluster, from start to end; nothing is written, and there are no checkpoints.

    For notebooks: the result's `encoder` (or `selector`) can be asked at once. Raises what a job raises.
    """
    # What DeepSpeed shares is shared among workers, and here is one.
    alone = config.optimizer.model_copy(update={"zero_stage": None})
    return retriever_worker(config.model_copy(update={"optimizer": alone}), Silent(), device)
