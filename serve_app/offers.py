"""The methods that a server offers, by their names, and what each needs of the other deployments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.errors import ConfigError
from regrad.meta_init import MetaInit
from regrad.methods.base import Artefacts, MethodInfo, MethodSettings
from regrad.methods.regrad import GradientSettings
from serve_app.config import ServeConfig
from serve_app.messages import Ask, BankNeed, Release, RoutedAsk


@dataclass(frozen=True)
class Offer:
    """One method with its settings."""

    settings: MethodSettings

    @property
    def info(self) -> MethodInfo:
        """What it does, under the name that it is offered by."""
        return replace(self.settings.info, name=self.settings.name)

    def routed(self, ask: Ask, release: Release) -> RoutedAsk:
        """The question with what this method needs of the other deployments."""
        return RoutedAsk(ask, release, self.info.retrieves, self._bank_need(ask))

    def _bank_need(self, ask: Ask) -> BankNeed:
        if not isinstance(self.settings, GradientSettings):
            return BankNeed.NOTHING
        if self.info.computes_gradients:
            return BankNeed.DELETIONS
        # One summed vector travels, unless somebody needs the gradients one by one.
        return BankNeed.PARTS if ask.contributions is not None or self.settings.needs_parts else BankNeed.SUM


def offers_of(config: ServeConfig) -> dict[str, Offer]:
    """Every method of the settings; the server's `on_missing` goes for those that say nothing of their own."""
    found = {}
    for settings in config.methods:
        inherits = isinstance(settings, GradientSettings) and "on_missing" in type(settings).model_fields
        if inherits and "on_missing" not in settings.model_fields_set:
            settings = settings.model_copy(update={"on_missing": config.on_missing})
        found[settings.name] = Offer(settings)
    return found


def check_offers(config: ServeConfig) -> None:
    """Raise what is wrong with the artefacts of methods that bring their own, or with the solved questions."""
    read_demonstrations(config)
    own = [settings for settings in config.methods if not isinstance(settings, GradientSettings)]
    if any(settings.artefacts != Artefacts() for settings in own):
        subspace = MetaInit.load(config.meta_init).model.subspace
        for settings in own:
            settings.check()
            settings.check_fits(subspace, passages=1)


def read_demonstrations(config: ServeConfig) -> Sequence[Question]:
    """As many solved questions as any method shows; raises `ConfigError` if the file has fewer."""
    wanted = max((settings.demonstrations for settings in config.methods), default=0)
    if not wanted or config.demonstrations is None:
        return ()
    found = read_questions(QuestionSetConfig(name="demonstrations", path=config.demonstrations, first=wanted))
    if len(found) < wanted:
        raise ConfigError(f"a method shows {wanted} demonstrations, and {config.demonstrations} has {len(found)}")
    return found
