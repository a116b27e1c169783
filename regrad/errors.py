"""Every error that regrad raises on purpose: what was expected, what was found, what to do.

The text is for people and may be reworded. Programs and tests go by `code` and `fields`, which stay:
`raise BankError(f"no bank at {uri}: ...", code="not_found", uri=uri)` has the code `bank.not_found`.
"""

from __future__ import annotations

from typing import ClassVar


class RegradError(Exception):
    """Base of all errors that a user can act on; its text is one clear sentence or two.

    `code` is the class's own area, or `area.part` with the part that the raiser gives. `fields` is what the text names:
    a path, a line, what was found. Both survive pickling, so an error keeps them on its way out of a worker.
    """

    area: ClassVar[str] = "regrad"

    def __init__(self, *arguments: object, code: str = "", **fields: object) -> None:
        super().__init__(*arguments)
        self.code = f"{self.area}.{code}" if code else self.area
        self.fields = fields


class ConfigError(RegradError):
    """A configuration file or override is wrong; the text names the key and the nearest right one."""

    area = "config"


class CorpusError(RegradError):
    """A corpus, question or task file could not be read; the text names the file and the line."""

    area = "corpus"


class StorageError(RegradError):
    """A file system or object store refused a read or a write (missing, full, unreachable)."""

    area = "storage"


class ModelError(RegradError):
    """A language model could not be loaded or does not fit the requested subspace."""

    area = "model"


class PromptTooLong(ModelError):
    """A prompt and its longest answer exceed the model's context; the text has the counts."""

    area = "model.prompt_too_long"


class TokenOutOfVocabulary(ModelError):
    """A text has a token that the tokenizer knows and the model does not; the text names it."""

    area = "model.token_out_of_vocabulary"


class MetaInitError(RegradError):
    """A MetaInit directory is missing, damaged or does not belong to the base model."""

    area = "meta_init"


class BankError(RegradError):
    """A Gradient Bank is missing or damaged, or does not hold what was asked for."""

    area = "bank"


class FingerprintMismatch(BankError):
    """A bank's atoms were computed at another MetaInit than the one in use."""

    area = "bank.fingerprint_mismatch"

    def __init__(self, bank_fingerprint: str, meta_init_fingerprint: str) -> None:
        # By position, so that it can be pickled.
        super().__init__(
            bank_fingerprint, meta_init_fingerprint, bank=bank_fingerprint, meta_init=meta_init_fingerprint
        )
        self.bank_fingerprint = bank_fingerprint
        self.meta_init_fingerprint = meta_init_fingerprint

    def __str__(self) -> str:
        return (
            f"the bank was built for MetaInit {self.bank_fingerprint} but the MetaInit given is "
            f"{self.meta_init_fingerprint}; rebuild the bank with `regrad build`, or use the MetaInit it was built for"
        )


class BankFormatError(BankError):
    """A bank is in a format, or has a codec, that this version of regrad cannot read."""

    area = "bank.format"


class BankConflict(BankError):
    """Another writer committed a version of the bank in the meantime; nothing of either is lost."""

    area = "bank.conflict"

    def __init__(self, uri: str, version: int) -> None:
        super().__init__(uri, version, uri=uri, version=version)
        self.uri = uri
        self.version = version

    def __str__(self) -> str:
        return (
            f"another writer committed version {self.version} of the bank at {self.uri} in the meantime; run the same "
            "command again: it continues from that version, and what was computed is kept"
        )


class AtomDamaged(BankError):
    """An atom's bytes are not those that were written; the text names the passage and the shard."""

    area = "bank.atom_damaged"


class AtomNotFound(BankError):
    """A passage id has no atom in the bank."""

    area = "bank.atom_not_found"


class RetrievalError(RegradError):
    """An index is missing or damaged, or searching it failed."""

    area = "retrieval"


class NothingFound(RetrievalError):
    """No passage matches the question, so there is nothing to answer from."""

    area = "retrieval.nothing_found"


class PassageNotFound(RetrievalError):
    """A passage id is not in the index."""

    area = "retrieval.passage_not_found"


class JavaNotFound(RetrievalError):
    """No Java 21 runtime could be found; the text says how to get one."""

    area = "retrieval.java_not_found"


class MethodError(RegradError):
    """A method is unknown, or lacks what it needs."""

    area = "method"


class ClusterError(RegradError):
    """The Ray cluster cannot be joined or is too small for the job."""

    area = "cluster"


class ServeError(RegradError):
    """The server could not start or did not answer."""

    area = "serve"


class TrainingError(RegradError):
    """Meta-training could not start or diverged."""

    area = "training"


class Interrupted(TrainingError):
    """A run stopped between two steps, on all workers; its state is kept, and the same run goes on from it."""

    area = "training"


class SynthesisError(RegradError):
    """No question could be written for a corpus; the text names the most frequent reason."""

    area = "synthesis"


class EvaluationError(RegradError):
    """A question set cannot be read or does not fit what is evaluated; the text names the file and the record."""

    area = "evaluation"


class RebuildError(RegradError):
    """A rebuild cannot begin or go on, or there is nothing to roll back to."""

    area = "rebuild"


class NotPromoted(RebuildError):
    """A version was built, and its score did not hold: it is kept aside. The text has both scores."""

    area = "rebuild.not_promoted"


class PlanningError(RegradError):
    """A serving configuration cannot be planned: the profile does not fit, there is no room, or no bound can be met."""

    area = "planning"


class TheoryError(RegradError):
    """A linear problem or a stack of constructed layers does not hold together; the text has both shapes."""

    area = "theory"
