"""Settings of LoRA training (one for all questions, or one per passage), of soft prompts on the same data, and of the
augmentation of that data.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from regrad.bank.config import BankConfig, OnMissingInTraining
from regrad.models.config import ModelConfig
from regrad.settings import Location, Settings, WorkersConfig, invalid
from regrad.training.config import Beta, ScheduleConfig, TrainConfig

FinetuneObjective = Literal["passages", "instruction", "questions", "questions-with-passages"]


_BATCH_TOKENS = (
    "padded tokens in one forward and backward pass; null: 8192, and on a processor as many as take a gigabyte or so"
)


class AdamWConfig(Settings):
    """AdamW over the numbers of a LoRA."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0, description="maximum norm of a LoRA's gradient; not clipped if null")
    batch_tokens: int | None = Field(None, ge=1, description=_BATCH_TOKENS)


class SgdConfig(Settings):
    """Plain stochastic gradient descent over the numbers of a LoRA: no momentum, no decay."""

    lr: float = Field(1e-2, gt=0)
    clip: float | None = Field(None, gt=0, description="maximum norm of a LoRA's gradient; not clipped if null")
    batch_tokens: int | None = Field(None, ge=1, description=_BATCH_TOKENS)


class FinetuneOptimizerConfig(AdamWConfig, ScheduleConfig):
    """AdamW for one LoRA."""

    clip: float | None = Field(1.0, gt=0, description="maximum norm of the gradient")


class SoftPromptConfig(Settings):
    """Prompt tuning (Lester et al. 2021): embeddings of virtual tokens before every prompt; the base is frozen.

    Unless the settings say another, `optimizer.lr` is then 0.01. (The paper's 0.3 is Adafactor's, for T5's embeddings,
    whose numbers are larger by far; a step of AdamW changes every number by about the rate.)
    """

    LR: ClassVar[float] = 1e-2

    tokens: int = Field(20, ge=1, description="number of virtual tokens")
    from_text: str | None = Field(
        None,
        min_length=1,
        description="they begin as the embeddings of this text's tokens, repeated or cut to their number; null: of "
        "tokens drawn by the seed from the vocabulary's first 5,000",
    )


class FinetuneConfig(TrainConfig):
    """`regrad finetune`: one LoRA for all questions: the continual-training and fine-tuning baselines; or, on the same
    data, a soft prompt.
    """

    model: ModelConfig
    objective: FinetuneObjective = Field(
        description="passages: continual pre-training; instruction: a passage with its questions; questions: prompt to "
        "answer; questions-with-passages: the same with the passages in the prompt"
    )
    corpus: Location | None = Field(None, description="passages; for instruction the output of `regrad augment`")
    tasks: Location | None = Field(None, description="questions, as for `regrad train`")
    soft_prompt: SoftPromptConfig | None = Field(
        None, description="train a soft prompt instead of a LoRA; `model.subspace` then does not matter"
    )
    start_from: Location | None = Field(
        None, description="an adapter (with soft_prompt: a soft prompt) to continue, for documents that came later"
    )
    adapters: Location | None = Field(
        None,
        description="with questions: a bank of `regrad adapters`; those of a question's first k passages are applied "
        "while its answer is learned",
    )
    adapters_version: int | None = Field(None, ge=1, description="the current one if null")
    on_missing: OnMissingInTraining = Field(
        "fewer",
        description="with adapters: for a passage without one: leave it out (fewer), with a count, or stop (fail)",
    )
    k: int | None = Field(
        None, ge=1, description="maximum number of passages in a prompt: the first of the question's context"
    )
    questions_together: int | None = Field(
        None,
        ge=1,
        description="maximum number of questions of one task, on the same passages, that make one example (what "
        "batch_size counts): its loss is their mean, and their prompts' common beginning is read once; null: 1",
    )
    max_examples: int | None = Field(
        None, ge=1, description="maximum number of examples, sampled by the seed; null: all"
    )
    max_tokens: int = Field(1536, ge=16, description="longer examples are left out and counted")
    optimizer: FinetuneOptimizerConfig = FinetuneOptimizerConfig()

    @model_validator(mode="before")
    @classmethod
    def _rate_of_its_own(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("soft_prompt") is None:
            return data
        optimizer = data.get("optimizer", {})
        if not isinstance(optimizer, Mapping) or "lr" in optimizer:
            return data
        return {**data, "optimizer": {**optimizer, "lr": SoftPromptConfig.LR}}

    @model_validator(mode="after")
    def _has_its_data(self) -> FinetuneConfig:
        wanted = "corpus" if self.objective in ("passages", "instruction") else "tasks"
        if getattr(self, wanted) is None:
            raise invalid("data_missing", f"objective {self.objective} needs '{wanted}'")
        if self.adapters is not None and wanted != "tasks":
            raise invalid(
                "adapters_without_questions",
                f"objective {self.objective} has no questions whose 'adapters' could be applied",
            )
        if self.adapters is not None and self.soft_prompt is not None:
            raise invalid(
                "adapters_beside_soft_prompt", "a soft prompt is trained on the base alone: leave out 'adapters'"
            )
        if self.questions_together is not None and wanted != "tasks":
            raise invalid(
                "nothing_to_take_together", f"objective {self.objective} has no questions for 'questions_together'"
            )
        return self


class AugmentConfig(Settings):
    """`regrad augment`: another wording and question-answer pairs for each passage (PRAG's document augmentation)."""

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"ready": "import_from"}

    output: Location = Field(description="a directory: augmented.jsonl, failed.jsonl and report.json")
    corpus: Location | None = Field(None, description="passages that `model` rewrites and writes questions about")
    model: ModelConfig | None = Field(None, description="the model that writes; required with `corpus`")
    import_from: Location | None = Field(
        None, description="instead of corpus: PRAG's data_aug or augmented passages, a file or a directory"
    )
    tasks: Location | None = Field(None, description="instead of corpus: tasks with questions; no rewrites")
    pairs: int = Field(3, ge=1, description="maximum number of questions per passage")
    least_pairs: int = Field(
        1, ge=1, description="minimum number of questions per passage; with fewer, the model is asked again"
    )
    full_answers: bool = Field(False, description="discard questions without a `full_answer`")
    rewrites: int = Field(1, ge=0, le=8, description="rewrites per passage")
    rewrite_prompt: str = (
        "Rewrite the following passage. While keeping the entities, proper nouns, and key details such as names, "
        "locations, and terminology intact, create a new version of the text that expresses the same ideas in a "
        "different way. Make sure the revised passage is distinct from the original one, but preserves the core "
        "meaning and relevant information.\n{passage}\nRewritten passage:"
    )
    pairs_prompt: str = (
        "I will provide a passage of text, and you need to generate {pairs} different questions based on the content "
        "of this passage. Each question should be answerable using the information provided in the passage. "
        'Answer with a JSON list of objects with the keys "question", "answer" and "full_answer" and nothing else.\n'
        "Passage:\n{passage}\nJSON:"
    )
    temperature: float = Field(0.7, gt=0)
    top_k: int = Field(50, ge=0, description="0: all tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: probability mass to sample from")
    max_new_tokens: int = Field(512, ge=8)
    retries: int = Field(10, ge=0, le=100, description="further attempts for a passage without valid pairs")
    batch_passages: int = Field(8, ge=1, description="passages decoded together")
    part_passages: int = Field(64, ge=1, description="passages of one part; an interrupted job reuses its parts")
    seed: int = 42
    cluster: WorkersConfig = WorkersConfig()

    @field_validator("rewrite_prompt", "pairs_prompt")
    @classmethod
    def _known_fields(cls, prompt: str) -> str:
        try:
            found = {field for _, field, _, _ in Formatter().parse(prompt) if field is not None}
        except ValueError as error:
            raise invalid("not_a_template", f"not a template: {error}") from error
        if "passage" not in found or not found <= {"passage", "pairs"}:
            raise invalid(
                "wrong_fields", f"a template with 'passage', and maybe 'pairs', is expected; it has {sorted(found)}"
            )
        return prompt

    @model_validator(mode="after")
    def _one_source(self) -> AugmentConfig:
        given = [name for name in ("corpus", "import_from", "tasks") if getattr(self, name) is not None]
        if len(given) != 1:
            raise invalid(
                "not_one_source", f"exactly one of corpus, import_from and tasks is expected, found {given or 'none'}"
            )
        if self.corpus is not None and self.model is None:
            raise invalid("model_missing", "corpus needs 'model'")
        if self.least_pairs > self.pairs:
            raise invalid(
                "least_above_most", f"least_pairs is {self.least_pairs}, but pairs, their maximum, is {self.pairs}"
            )
        return self


class AdapterConfig(AdamWConfig):
    """How one passage's adapter is trained; the defaults are PRAG's."""

    weight_decay: float = Field(0.01, ge=0)
    rank: int = Field(2, ge=1)
    alpha: float = Field(32.0, gt=0)
    epochs: int = Field(1, ge=1)
    max_tokens: int = Field(3000, ge=16, description="limit for a sequence; longer ones are left out")
    pairs: int | None = Field(
        None, ge=1, description="maximum number of questions per passage, the first ones; null: all"
    )
    answers: Literal["short", "full"] = Field(
        "short", description="full: `full_answer`, sentences for reasoning; questions without one are left out"
    )
    soft_orthogonality: float = Field(
        0.0,
        ge=0,
        description="weight (D-PRAG: 10) of a penalty on the overlap of an adapter's A with the static LoRA's",
    )
    hard_orthogonality: bool = Field(
        False, description="keep each adapter's A in the null space of the static LoRA's: D-PRAG's hard constraint"
    )

    @property
    def scaling(self) -> float:
        """The factor alpha / rank on B A."""
        return self.alpha / self.rank

    @model_validator(mode="after")
    def _one_constraint(self) -> AdapterConfig:
        if self.hard_orthogonality and self.soft_orthogonality:
            raise invalid(
                "both_orthogonalities",
                "soft_orthogonality is a penalty on what hard_orthogonality rules out: set one of the two, or none",
            )
        return self


class AdaptersConfig(Settings):
    """`regrad adapters`: a LoRA for each passage, trained or generated, into a bank."""

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"keep": "reuse"}

    model: ModelConfig = Field(description="its subspace names the blocks and projections; the rank is `adapter.rank`")
    translator: Location | None = Field(
        None,
        description="a translator of `regrad translator`, which generates the adapters; nothing is trained, and "
        "`adapter`, `rows` and `seed` are not read",
    )
    static: Location | None = Field(None, description="a LoRA of `regrad finetune`; adapters are trained on top of it")
    start_from: Location | None = Field(
        None, description="the PEFT adapter that all start from, such as PRAG's base_weight; null: random, by `seed`"
    )
    corpus: Location = Field(
        description="the output of `regrad augment`: its directory, or the file; with a translator any corpus"
    )
    demonstrations: Location | None = Field(
        None,
        description="solved questions (format jsonl), all of them shown before every question, as when answering",
    )
    bank: BankConfig
    adapter: AdapterConfig = AdapterConfig()
    rows: int = Field(64, ge=1, description="passages trained at once; changes results only by rounding")
    reuse: bool = Field(
        False, description="keep the bank's adapters of passages whose text is unchanged, however they were trained"
    )
    seed: int = 42
    cluster: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _trained_or_generated(self) -> AdaptersConfig:
        trained = [name for name in ("static", "start_from", "demonstrations") if getattr(self, name) is not None]
        if self.translator is not None and trained:
            raise invalid(
                "trained_and_generated",
                f"'{trained[0]}' says how adapters are trained, but 'translator' generates them: leave one of them out",
            )
        return self

    @model_validator(mode="after")
    def _has_what_to_be_orthogonal_to(self) -> AdaptersConfig:
        if self.static is None and (self.adapter.hard_orthogonality or self.adapter.soft_orthogonality):
            raise invalid(
                "static_missing",
                "adapters are kept orthogonal to a LoRA of `regrad finetune`, but 'static' names none; train one on "
                "questions first (objective: questions)",
            )
        return self
