"""Settings of training a retriever."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

from regrad.data.question_sets import QuestionSetConfig
from regrad.methods.artefact_files import artefact_places
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.registry import MethodConfig
from regrad.methods.regrad import ReGradOnlineConfig
from regrad.models.config import ModelConfig, ModelPath
from regrad.retrieval.config import PART_PASSAGES
from regrad.settings import Location, Settings, WorkersConfig, invalid
from regrad.storage import same_place
from regrad.training.config import Beta, ScheduleConfig, TrainConfig
from regrad.training.module_steps import ZeroStage

_FOR_ANSWERS = ("demonstrations", "one_by_one", "index", "retrieval")
"""Settings of a method that say how it is asked, and not how one passage is read."""


def lies_in(place: str, folder: str) -> bool:
    """Whether this location is that one, or inside it, whatever they are written like."""
    place, folder = same_place(place), same_place(folder)
    return place == folder or place.startswith(f"{folder}/")


def _repeated(key: str, place: str, other: str, where: str) -> PydanticCustomError:
    return invalid(
        "repeated",
        f"{key} is {place:.200}, and {other} is {where:.200}: one would be written over the other, so give each result "
        "its own place",
    )


class MarginalConfig(Settings):
    """The marginal likelihood over the prior's top K, as RAG was trained."""

    kind: Literal["marginal"] = "marginal"


class VragConfig(Settings):
    """The evidence lower bound, by exact sums over candidates."""

    kind: Literal["vrag"] = "vrag"
    over: Literal["posterior", "union"] = Field(
        "posterior", description="the candidates that count: the posterior's top k, or those of both retrievers"
    )
    beta: float = Field(1.0, ge=0, description="weight of KL(posterior || prior)")


class JsaConfig(Settings):
    """Joint stochastic approximation; the defaults are those of the released code."""

    kind: Literal["jsa"] = "jsa"
    proposals: int = Field(50, ge=1, description="steps of a question's chain per training step")
    states: Literal["all", "last"] = Field("all", description="the states of a chain that enter the loss")
    keep_chain: bool = Field(
        False, description="resume a question's chain where it ended when the question was last drawn; needs one worker"
    )
    simplified: bool = Field(False, description="propose from the prior: no posterior is trained")
    temperature_lm: float = Field(1.0, gt=0, description="divides the log-likelihoods in the acceptance ratio")


class DistillConfig(Settings):
    """Distillation of the answer's likelihoods into the prior."""

    kind: Literal["distill"] = "distill"
    direction: Literal["to-prior", "from-prior"] = Field(
        "to-prior", description="KL(likelihoods || prior), as in Atlas, or KL(prior || likelihoods), as in REPLUG"
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the softmax over log-likelihoods")


class DroConfig(Settings):
    """Expectation and maximisation over ordered lists of the candidates (DRO)."""

    kind: Literal["dro"] = "dro"
    samples: int = Field(8, ge=2, description="orderings drawn for each question; one alone would always weigh 1")
    shown: int = Field(5, ge=1, description="passages of an ordering, which the generator reads together")
    iteration: int = Field(
        1,
        ge=1,
        description="steps between expectations: orderings are drawn and weighed by what was trained until then",
    )
    baseline: bool = Field(
        True, description="subtract from each ordering's weight what it weighs by chance; false: the loss as published"
    )


ObjectiveConfig = Annotated[MarginalConfig | VragConfig | JsaConfig | DistillConfig | DroConfig, Discriminator("kind")]
"""The settings of one objective."""


class RetrieverOptimizerConfig(ScheduleConfig):
    """AdamW over all that is trained; the generator has a rate of its own."""

    steps: int = Field(300, ge=1)
    lr: float = Field(1e-5, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(1.0, gt=0, description="maximum norm of the gradient; null: no clipping")
    zero_stage: ZeroStage | None = Field(
        None, description="DeepSpeed's ZeRO stage, 1 or 2; null: each worker has all moments and gradients"
    )


class GeneratorConfig(Settings):
    """The generator, trained by the same objective: a LoRA beside `rag`, the MetaInit's phi0 under `regrad-online`."""

    output: Location = Field(description="the trained LoRA (as of `regrad finetune`), or MetaInit")
    start_from: Location | None = Field(None, description="a LoRA to continue from; null: a new one")
    lr: float = Field(2e-5, gt=0, description="peak rate of the generator's parameters")


class SelectorConfig(Settings):
    """A cross-encoder that orders what an index finds, trained in place of the question encoder."""

    model: ModelPath = Field(description="a cross-encoder with one score, to begin with")
    output: Location = Field(description="the trained cross-encoder; the indexes written are reranked by it")
    max_tokens: int = Field(512, ge=8, description="limit for question and passage together")


class PassageTrainingConfig(Settings):
    """The passages' encoder, trained too: its index is made anew from time to time, and at the end."""

    encoder: Location = Field(description="the trained encoder of passages, which the new indexes are made with")
    corpus: Location = Field(description="the passages of `index`, for the workers that embed them")
    every: int = Field(100, ge=1, description="steps between refreshes of the vectors that are searched")
    delay: int = Field(
        0, ge=0, description="steps on the old vectors while new ones are made; 0: training waits for them"
    )
    lr: float | None = Field(None, gt=0, description="peak rate of its parameters; null: optimizer.lr")
    part_passages: int = Field(PART_PASSAGES, ge=1, description="passages that a worker encodes at once")
    cluster: WorkersConfig = Field(WorkersConfig(workers=1), description="replicas of the encoder that embed")


class OtherIndex(Settings):
    """An index that the questions of training are not about, such as that of the corpus to be served."""

    index: Location = Field(description="a dense index of the same passage encoder")
    output: Location = Field(description="the same index with the trained question encoder")
    corpus: Location | None = Field(None, description="its passages; needed if the passages' encoder is trained")


class RetrieverTrainConfig(TrainConfig):
    """`regrad retriever`: train the question encoder of a dense index by how much its passages help to answer."""

    model: ModelConfig = Field(description="the generator")
    generator: GeneratorConfig | None = Field(None, description="train the generator, too; null: it stays as it is")
    index: Location = Field(
        description="a dense index (`vectors: flat`) with the passages of the training questions; any, with a selector"
    )
    selector: SelectorConfig | None = Field(
        None, description="train a cross-encoder over the index's best k; null: the question encoder"
    )
    others: tuple[OtherIndex, ...] = Field((), description="further indexes that get the trained question encoder")
    passages: PassageTrainingConfig | None = Field(
        None, description="train the passages' encoder, too; null: it and the vectors stay as they are"
    )
    tasks: Location | None = Field(None, description="questions of tasks, as for `regrad train`")
    questions: QuestionSetConfig | None = Field(None, description="instead of tasks: a question set with answers")
    method: MethodConfig = Field(
        description="how the answer's likelihood with one passage is computed: rag puts it into the prompt, regrad and "
        "regrad-online apply its gradient"
    )
    likelihood: Literal["sequence", "token-mean"] = Field(
        "sequence",
        description="log p(answer): of the sequence, or divided by its number of tokens, as in JSA-RAG's released code",
    )
    objective: ObjectiveConfig = JsaConfig()
    k: int = Field(10, ge=1, description="number of candidates: each retriever's best passages")
    temperature: float = Field(0.1, gt=0, description="divides the scores before the softmax over candidates")
    separator: str = Field(" [SEP] ", description="between question and answer in the posterior's query")
    batch_tokens: int = Field(
        16384,
        ge=1,
        description="padded tokens per pass of the generator, and of an encoder or a selector that is trained",
    )
    max_questions: int | None = Field(
        None, ge=1, description="maximum number of questions, sampled by the seed; null: all"
    )
    optimizer: RetrieverOptimizerConfig = RetrieverOptimizerConfig()

    @model_validator(mode="after")
    def _holds_together(self) -> RetrieverTrainConfig:
        if (self.tasks is None) == (self.questions is None):
            raise invalid("not_one_source", "training questions are of 'tasks' or of 'questions': give one of the two")
        if not self.method.info.retrieves:
            raise invalid(
                "method_without_passages", f"method {self.method.kind} uses no passage, so none is better than another"
            )
        if ignored := [key for key in _FOR_ANSWERS if getattr(self.method, key)]:
            raise invalid(
                "ignored_in_training",
                f"method.{ignored[0]} has no effect here, where an answer is read with one passage that the index in "
                "training has found: leave it out",
            )
        self._has_places_apart()
        if self.passages is not None:
            self._trains_passages(self.passages)
        if self.selector is not None:
            self._trains_selector()
        if self.generator is not None:
            self._trains_generator(self.generator)
        if isinstance(self.objective, JsaConfig) and self.objective.keep_chain and self.cluster.workers > 1:
            raise invalid(
                "chain_needs_one_worker",
                "objective.keep_chain needs cluster.workers 1: a question's chain is one worker's",
            )
        return self

    def _has_places_apart(self) -> None:
        """No result may take the place of another, or of what is read, or have it inside: it would be removed."""
        made = self._made()
        for number, (key, place) in enumerate(made):
            # Nor may it lie in one of these; beside files of questions and passages it may.
            for other, where in [*made[:number], *self._read_directories()]:
                if lies_in(place, where) or lies_in(where, place):
                    raise _repeated(key, place, other, where)
            for other, where in self._read_files():
                if lies_in(where, place):
                    raise _repeated(key, place, other, where)

    def _made(self) -> list[tuple[str, str]]:
        made = [("output", self.output)]
        made += [(f"others.{number}.output", other.output) for number, other in enumerate(self.others)]
        if self.passages is not None:
            made.append(("passages.encoder", self.passages.encoder))
        if self.selector is not None:
            made.append(("selector.output", self.selector.output))
        if self.generator is not None:
            made.append(("generator.output", self.generator.output))
        return made

    def _read_directories(self) -> list[tuple[str, str]]:
        read: list[tuple[str, str | None]] = [("index", self.index), ("model.path", self.model.path)]
        read += [(f"others.{number}.index", other.index) for number, other in enumerate(self.others)]
        read += [(f"method.{key}", place) for key, place in artefact_places(self.method.artefacts).items()]
        read.append(("selector.model", self.selector.model if self.selector else None))
        read.append(("generator.start_from", self.generator.start_from if self.generator else None))
        return [(key, place) for key, place in read if place]

    def _read_files(self) -> list[tuple[str, str]]:
        read = [("tasks", self.tasks), ("questions.path", self.questions.path if self.questions else None)]
        read.append(("passages.corpus", self.passages.corpus if self.passages else None))
        read += [(f"others.{number}.corpus", other.corpus) for number, other in enumerate(self.others)]
        read.append(("checkpoints.location", self.checkpoints.location))
        return [(key, place) for key, place in read if place]

    def _trains_generator(self, generator: GeneratorConfig) -> None:
        if not isinstance(self.method, PromptOnlyConfig | ReGradOnlineConfig):
            raise invalid(
                "generator_of_method",
                f"a generator is trained with rag or pe-rag (a LoRA) or regrad-online (phi0), not {self.method.kind}, "
                "whose artefacts were made for the generator as it is",
            )
        if isinstance(self.objective, DistillConfig):
            raise invalid(
                "distill_trains_no_generator",
                "objective distill takes the answer's likelihoods as they are: leave 'generator' out, or take another",
            )
        if generator.start_from is not None and isinstance(self.method, ReGradOnlineConfig):
            raise invalid("start_from_twice", "generator.start_from is a LoRA; phi0 begins as method.meta_init has it")

    def _trains_selector(self) -> None:
        simplified = isinstance(self.objective, JsaConfig) and self.objective.simplified
        if not (simplified or isinstance(self.objective, MarginalConfig | DistillConfig | DroConfig)):
            raise invalid(
                "selector_without_posterior",
                "a selector has no posterior that sees the answer: take objective dro, marginal, distill, or jsa with "
                "simplified: true",
            )
        if isinstance(self.objective, JsaConfig) and self.objective.keep_chain:
            raise invalid(
                "selector_keeps_no_chain",
                "objective.keep_chain: a selector's chains begin anew in each step, as its candidates have no rows in "
                "an index: leave it out",
            )
        if self.passages is not None:
            raise invalid("selector_of_passages", "a selector orders what an index finds: leave 'passages' out")

    def _trains_passages(self, passages: PassageTrainingConfig) -> None:
        if passages.delay >= passages.every:
            raise invalid(
                "delay_of_refresh",
                f"passages.delay {passages.delay} must be below passages.every {passages.every}: one refresh at a time",
            )
        if bare := [other.index for other in self.others if other.corpus is None]:
            raise invalid(
                "corpus_missing",
                f"passages: the index at {bare[0]} is made anew with its encoder, so 'corpus' is needed",
            )
