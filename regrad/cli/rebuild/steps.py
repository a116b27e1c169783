"""The steps of a rebuild as they are: the jobs behind `regrad train`, `index`, `build`, `bank verify` and `eval`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from ray_jobs import build_bank, evaluate, index_corpus, meta_train
from ray_jobs.cluster import cluster
from regrad.bank.builder import read_preparation
from regrad.bank.codecs import codec_for
from regrad.bank.config import BuildConfig
from regrad.bank.format import read_manifest
from regrad.bank.verify import verify
from regrad.cli.rebuild.checks import check_workers
from regrad.cli.rebuild.serving import take_up
from regrad.data.corpora import read_passages
from regrad.data.question_sets import read_questions
from regrad.errors import BankError, RebuildError
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.output import Output
from regrad.evaluation.plan import repetitions, short_hash
from regrad.evaluation.report.entries import gather
from regrad.meta_init import CARD as META_INIT_CARD
from regrad.meta_init import read_card
from regrad.models.subspace import Subspace
from regrad.rebuild.config import META_INIT, RebuildConfig
from regrad.rebuild.flow import Rebuild
from regrad.rebuild.inputs import Inputs, folder_digest, size_of
from regrad.rebuild.records import MadeOutput, RunRecord
from regrad.rebuild.steps import Done, Step, StepOutcome, remove_left_over
from regrad.rebuild.versions import OWN, Version, own_replaced
from regrad.retrieval.base import CARD as INDEX_CARD
from regrad.retrieval.base import check_index
from regrad.retrieval.config import IndexConfig
from regrad.settings import Settings, parse_settings
from regrad.storage import Storage
from regrad.training.meta.config import MetaTrainConfig

S = TypeVar("S", bound=Settings)

_FOLDER = "artefacts"
_BUILD, _EVALUATION = "build", "eval"
# What changes no number, or only by rounding: a run that was begun may go on with others.
_FREE: dict[str, Any] = {"output": True, "cluster": True, "watch": True, "checkpoints": True}


def make_rebuild(config: RebuildConfig) -> Rebuild:
    """What the settings ask for. Reads what they name, to know it again; raises for what is missing or damaged."""
    parts = Parts(config)
    return Rebuild(
        output=parts.output,
        steps=parts.steps,
        places=parts.places,
        keys=parts.keys,
        pinned=parts.pinned,
        evaluation=parts.evaluation,
        score=lambda record: score_of(config, record),
        serve=lambda version: serve(config, version),
        promotion=config.promotion,
        cost=config.cost,
        around=parts.around,
    )


def serve(config: RebuildConfig, version: Version) -> str | None:
    """Have the servers of the settings answer from a version; None without any."""
    if config.serving is None:
        return None
    return take_up(config.serving, version, Storage(config.output))


def score_of(config: RebuildConfig, record: RunRecord) -> float:
    """The figure that promotion goes by, of an evaluation's record."""
    rule = config.promotion
    wanted = {
        "model": next(iter(config.eval.models)),
        "set": rule.set or config.eval.sets[0].name,
        "method": rule.method,
    }
    found = [row for row in record.facts["scores"] if all(row[key] == value for key, value in wanted.items())]
    # A method that retrieves nothing has one score, whatever k is.
    row = next((row for row in found if row["k"] in (0, rule.k or config.eval.k[0])), None)
    if row is None:
        text = f"the evaluation has no score of {rule.method} on {wanted['set']}: see its report"
        raise RebuildError(text, code="no_score", **wanted)
    return float(row[rule.metric])


class Parts:
    """The steps, and of everything that they make its place below the output and its key, by name."""

    def __init__(self, config: RebuildConfig) -> None:
        self.config, self.output, self._inputs = config, Storage(config.output), Inputs()
        self.places: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self.steps: list[Step] = []
        if config.meta_init is not None:
            self.places[_name(META_INIT)] = config.meta_init
            self.keys[_name(META_INIT)] = str(read_card(config.meta_init)["fingerprint"])
        if config.train is not None:
            self.steps.append(self._train(config.train))
        self.steps += [self._index(one) for one in config.index]
        self.steps += [self._build(config.build), self._verify()]

    @contextmanager
    def around(self) -> Iterator[None]:
        """One Ray for all steps, which has what the last of them needs, or the first does not begin."""
        with cluster():
            check_workers(self.config)
            yield

    def pinned(self, done: Done) -> dict[str, Any]:
        """Of the version: its bank's version, the passages in that, and the indexes of the corpus itself."""
        facts = done[_BUILD].facts
        searched = tuple(_name(one.output) for one in self.config.index if one.corpus is not None)
        return {"bank_version": facts["bank_version"], "passages": facts["passages"], "searched": searched}

    def evaluation(self, version: Version) -> Step:
        """The evaluation of a version, this one or one before: with its parts in the places of `version://`."""
        settings = self.config.eval
        content = self._content(settings, version.keys, exclude={**_FREE, "batch": True})
        key = short_hash(content)
        place = f"{_FOLDER}/eval-{key}"

        def work(done: Done) -> StepOutcome:
            data = settings.model_dump(mode="json")
            for method in data["methods"]:
                if method.get("bank", "").startswith(OWN) and method.get("bank_version") is None:
                    method["bank_version"] = version.bank_version
            made = self._made(EvalConfig, data, version.places_in(self.output), place, "eval")
            return _evaluated(evaluate.run(made), made, place, version.id)

        return Step(
            name=_EVALUATION,
            key=key,
            settings=content,
            work=work,
            like=[content["models"], [one.name for one in settings.methods]],
            workers=settings.cluster.workers,
            unit="questions",
            count=lambda: _questions_asked(settings),
            grows=False,
        )

    def _train(self, settings: MetaTrainConfig) -> Step:
        free = {**_FREE, "optimizer": {"micro_batch"}}
        content = self._content(settings, self.keys, exclude=free)
        key, place = self._placed(settings.output, content)
        uri = f"{self.output.uri}/{place}"

        def made(line: str) -> StepOutcome:
            card = read_card(uri)
            tasks = settings.optimizer.batch_size * card["notes"]["steps"]
            return StepOutcome(line, {"fingerprint": card["fingerprint"]}, (_output(self.output, place),), tasks)

        def found() -> StepOutcome | None:
            there = Storage(uri).exists(META_INIT_CARD)
            return made(f"MetaInit {read_card(uri)['fingerprint']} at {uri}") if there else None

        one = self._made(MetaTrainConfig, settings.model_dump(mode="json"), self._absolute(), place, "train")
        optimizer = settings.optimizer
        return Step(
            name="train",
            key=key,
            settings=content,
            work=lambda _: made(meta_train.run(one)),
            found=found,
            like=[content[name] for name in ("model", "inner", "strategy", "shape")],
            workers=settings.cluster.workers,
            unit="tasks",
            count=lambda: None if optimizer.epochs else optimizer.steps * optimizer.batch_size,
            grows=False,
        )

    def _index(self, settings: IndexConfig) -> Step:
        content = self._content(settings, self.keys, exclude={"output": True, "threads": True})
        key, place = self._placed(settings.output, content)
        uri = f"{self.output.uri}/{place}"

        def made(line: str) -> StepOutcome:
            count = check_index(uri).passages
            return StepOutcome(line, {"passages": count}, (_output(self.output, place),), count)

        one = self._made(IndexConfig, settings.model_dump(mode="json"), self._absolute(), place, "index")

        def work(_: Done) -> StepOutcome:
            remove_left_over(self.output, place)
            return made(index_corpus.run(one))

        return Step(
            name=_name(settings.output),
            key=key,
            settings=content,
            work=work,
            found=lambda: made(f"index at {uri}") if Storage(uri).exists(INDEX_CARD) else None,
            like={name: value for name, value in content.items() if name != "corpus"},
            unit="passages",
            count=self._passages,
        )

    def _build(self, settings: BuildConfig) -> Step:
        free = {"cluster": True, "batch_tokens": True, "bank": {"uri"}}
        content = self._content(settings, self.keys, exclude=free)
        # One bank for all corpora: of another one only what has changed is computed, and versions are kept.
        bank = {name: value for name, value in content.items() if name != "corpus"}
        place = f"{_FOLDER}/{_name(settings.bank.uri)}-{short_hash(bank)}"
        uri, key = f"{self.output.uri}/{place}", short_hash(content)
        self.places[_name(settings.bank.uri)], self.keys[_name(settings.bank.uri)] = place, key

        def work(_: Done) -> StepOutcome:
            data = own_replaced(settings.model_dump(mode="json"), self._absolute())
            built = build_bank.build(parse_settings(BuildConfig, data, "build"))
            return _built(built, uri, place)

        return Step(
            name=_BUILD,
            key=key,
            settings=content,
            work=work,
            like=[{name: value for name, value in bank.items() if name != "meta_init"}, self._model()],
            workers=settings.cluster.workers,
            unit="passages",
            count=self._passages,
            size=lambda passages: self._bank_bytes(settings, passages),
        )

    def _verify(self) -> Step:
        """Every byte of the bank's version, and that the indexes are whole."""
        content = dict(self.keys)
        bank = f"{self.output.uri}/{self.places[_name(self.config.build.bank.uri)]}"
        indexes = [f"{self.output.uri}/{self.places[_name(one.output)]}" for one in self.config.index]

        def work(done: Done) -> StepOutcome:
            version = int(done[_BUILD].facts["bank_version"])
            damage = verify(bank, version)
            if damage:
                raise BankError(
                    f"version {version} of the bank at {bank} is damaged: {damage[0].file}: {damage[0].problem}; "
                    "`regrad bank verify --repair --drop-lost` there, then rebuild with other settings of the bank, or "
                    "restore the file and rebuild",
                    code="damaged",
                    file=damage[0].file,
                )
            for index in indexes:
                check_index(index)
            count = read_manifest(Storage(bank), version).passages
            return StepOutcome(f"version {version} of the bank is as it was written", {}, (), count)

        like = self.config.build.bank.codec
        return Step("verify", short_hash(content), content, work, like=like, unit="passages", count=self._passages)

    def _content(self, settings: Settings, keys: Mapping[str, str], exclude: dict[str, Any]) -> dict[str, Any]:
        """All that decides the result: settings, with digests of what they name, and keys of what the version has."""
        data = self._inputs.digested(settings.model_dump(mode="json", exclude=exclude))
        content: dict[str, Any] = own_replaced(data, {name: f"{name}:{key}" for name, key in keys.items()})
        return content

    def _placed(self, output: str, content: dict[str, Any]) -> tuple[str, str]:
        name, key = _name(output), short_hash(content)
        self.places[name], self.keys[name] = f"{_FOLDER}/{name}-{key}", key
        return key, self.places[name]

    def _made(self, kind: type[S], data: dict[str, Any], parts: dict[str, str], place: str, where: str) -> S:
        """The settings of the job, with this place as its output."""
        replaced = {**own_replaced({**data, "output": ""}, parts), "output": f"{self.output.uri}/{place}"}
        return parse_settings(kind, replaced, where)

    def _absolute(self) -> dict[str, str]:
        version = {"bank_version": 1, "passages": 0}
        return Version(id="0000-000000000000", places=self.places, keys={}, **version).places_in(self.output)

    def _model(self) -> Any:
        """What decides how long a passage takes and how large its atom is, before there is a MetaInit and after."""
        train = self.config.train
        return self._content(train.model, {}, exclude={}) if train else self.keys[_name(META_INIT)]

    def _passages(self) -> int:
        return sum(1 for _ in read_passages(self.config.corpus))

    def _bank_bytes(self, settings: BuildConfig, passages: int) -> int | None:
        """Of the atoms, as soon as the MetaInit is there; they are all but a few thousandths of a bank."""
        meta_init = own_replaced(settings.meta_init, self._absolute())
        if not Storage(meta_init).exists(META_INIT_CARD):
            return None
        subspace = Subspace.from_json(read_card(meta_init)["subspace"])
        return passages * codec_for(settings.bank.codec, subspace).record_bytes


def _name(place: str) -> str:
    return place.removeprefix(OWN)


def _output(output: Storage, place: str) -> MadeOutput:
    uri = f"{output.uri}/{place}"
    return MadeOutput(place=place, bytes=size_of(uri), digest=folder_digest(uri))


def _built(built: build_bank.Built, uri: str, place: str) -> StepOutcome:
    manifest = built.manifest
    noted = read_preparation(uri, manifest.version)
    facts = {
        **{"bank_version": manifest.version, "passages": manifest.passages},
        **{"refused": built.refused, "nodes": built.nodes},
    }
    # The manifest has the checksum of every file of its version: a bank is not read again to know it.
    made = MadeOutput(place=place, bytes=manifest.passages * manifest.record_bytes, digest=manifest.label)
    line = build_bank.describe(manifest, uri)
    count, busy = (noted.passages, noted.seconds) if noted else (manifest.passages, None)
    return StepOutcome(line, facts, (made,), count, busy)


def _evaluated(line: str, config: EvalConfig, place: str, version: str) -> StepOutcome:
    output = Output(config.output)
    planned = output.planned()
    columns = ("model", "set", "method", "k", "em", "f1", "value", "low", "high", "questions")
    scores = [{name: getattr(entry, name) for name in columns} for entry in gather(output, planned)]
    runs = [output.run_card(card) for card in planned.cells]
    busy = sum(run.retrieval + run.update + run.generation for run in runs if run)
    made = MadeOutput(place=place, bytes=size_of(config.output), digest=short_hash(json.loads(json.dumps(scores))))
    return StepOutcome(
        line, {"version": version, "scores": scores}, (made,), sum(card.questions for card in planned.cells), busy
    )


def _questions_asked(config: EvalConfig) -> int:
    """Of all cells together."""
    return sum(
        len(read_questions(one)) * len(list(repetitions(config, method, one))) * len(config.models)
        for one in config.sets
        for method in config.methods
    )
