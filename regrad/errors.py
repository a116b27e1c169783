"""Every error that regrad raises on purpose: what was expected, what was found, what to do."""

from __future__ import annotations


class RegradError(Exception):
    """Base of all errors that a user can act on; its text is one clear sentence or two."""


class ConfigError(RegradError):
    """A configuration file or override is wrong; the text names the key and the nearest right one."""


class CorpusError(RegradError):
    """A corpus, question or task file could not be read; the text names the file and the line."""


class StorageError(RegradError):
    """A file system or object store refused a read or a write (missing, full, unreachable)."""


class ModelError(RegradError):
    """A language model could not be loaded or does not fit the requested subspace."""


class PromptTooLong(ModelError):
    """A prompt and its longest answer exceed the model's context; the text has the counts."""


class MetaInitError(RegradError):
    """A MetaInit directory is missing, damaged or does not belong to the base model."""


class BankError(RegradError):
    """A Gradient Bank is missing, damaged or holds something else than what was asked for."""


class FingerprintMismatch(BankError):
    """A bank's atoms were computed at another MetaInit than the one in use."""

    def __init__(self, bank_fingerprint: str, meta_init_fingerprint: str) -> None:
        super().__init__(bank_fingerprint, meta_init_fingerprint)
        self.bank_fingerprint = bank_fingerprint
        self.meta_init_fingerprint = meta_init_fingerprint

    def __str__(self) -> str:
        return (
            f"the bank was built for MetaInit {self.bank_fingerprint} but the MetaInit given is "
            f"{self.meta_init_fingerprint}; rebuild the bank with `regrad build` or give the MetaInit it belongs to"
        )


class BankFormatError(BankError):
    """A bank was written by another version of regrad, in a format that this one cannot read."""


class BankConflict(BankError):
    """Somebody else committed a version of the bank in the meantime; nothing of theirs or ours is lost."""

    def __init__(self, uri: str, version: int) -> None:
        super().__init__(uri, version)
        self.uri, self.version = uri, version

    def __str__(self) -> str:
        return (
            f"somebody else committed version {self.version} of the bank at {self.uri} in the meantime; run the same "
            "command again: it goes on from their version, and what was computed is kept"
        )


class AtomDamaged(BankError):
    """An atom's bytes are not those that were written; the text names the passage and the shard."""


class AtomNotFound(BankError):
    """A passage id has no atom in the bank."""


class RetrievalError(RegradError):
    """An index is missing or damaged, or Lucene failed."""


class NothingFound(RetrievalError):
    """No passage matches the question, so there is nothing to answer from."""


class PassageNotFound(RetrievalError):
    """A passage id is not in the index."""


class JavaNotFound(RetrievalError):
    """No Java 21 runtime could be found; the text says how to get one."""


class MethodError(RegradError):
    """An unknown method was named, or a method lacks what it needs."""


class ClusterError(RegradError):
    """The Ray cluster cannot be joined or is too small for the job."""


class ServeError(RegradError):
    """The server could not start or did not answer."""


class TrainingError(RegradError):
    """Meta-training could not start or diverged."""


class SynthesisError(RegradError):
    """No question could be written for a corpus; the text names the most frequent reason."""


class EvaluationError(RegradError):
    """A question set, a prediction file or the records of an evaluation are wrong or do not belong together."""
