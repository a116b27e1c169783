"""Loading a base language model: from a directory, a hub name, a GGUF file or an installed package; and checking it.

The checks here are of what regrad adapts and trains. `regrad.inference.engine` checks that it decodes correctly.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from regrad.errors import ModelError, PromptTooLong
from regrad.models.architectures import Architecture, architecture_of, context_length
from regrad.models.blocks import Blocks
from regrad.models.checkpoint import check_finite, load_checkpoint, stored_tensors
from regrad.models.config import ModelConfig
from regrad.models.half_weights import HalfWeights
from regrad.models.local_files import resolve_path
from regrad.models.lora import BatchedLora
from regrad.models.packing import reads_packed_rows
from regrad.models.placement import connect, fitting
from regrad.models.precision import require_bf16
from regrad.models.sharded import gather_in_passes, loading_sharded, whole, whole_shape
from regrad.models.subspace import Subspace, find_subspace
from regrad.models.tokens import check_known, has_chat, prompt_ids, token_ids
from regrad.text import in_one_line

logger = logging.getLogger(__name__)

# Two rows, as the first dimension of what a block reads must be that of the rows.
_CHECKED_IDS = [[0, 1, 2], [2, 1, 0]]
_MOST_DIFFERENT = 1e-2
Device = str | torch.device


@dataclass
class LanguageModel:
    """A frozen causal language model in evaluation mode, its tokenizer, and the slots for updates.

    `lora` has the slots of the model's own subspace, that of its settings, where it is trained and its gradients are
    taken; `lora_for` makes the slots of others. `config` is what it was loaded with, everything `auto` resolved, so
    that a MetaInit made from it loads the same model anywhere. `end_ids` are all tokens that end an answer, `eos` the
    one to train with. `context_length` is None without a limit. `packs` says whether a row may hold several sequences.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    lora: BatchedLora
    config: ModelConfig
    blocks: Blocks
    end_ids: tuple[int, ...] = ()
    context_length: int | None = None
    packs: bool = False
    other_loras: dict[Subspace, BatchedLora] = field(default_factory=dict, repr=False)
    gathering: list[RemovableHandle] = field(default_factory=list, repr=False)

    @property
    def subspace(self) -> Subspace:
        """The adaptation subspace of this model's settings."""
        return self.lora.subspace

    def lora_for(self, subspace: Subspace) -> BatchedLora:
        """The slots for updates in any subspace; raises `ModelError` if the model lacks one of its projections."""
        if subspace == self.subspace:
            return self.lora
        if subspace not in self.other_loras:
            self.other_loras[subspace] = BatchedLora(self.model, subspace)
        return self.other_loras[subspace]

    @contextmanager
    def applied(self, updates: Mapping[Subspace, Tensor], tokens_NT: Tensor | None = None) -> Iterator[None]:
        """Inside the block, forward passes run with all of these updates ([P] or [U, P], see `BatchedLora.applied`)."""
        with ExitStack() as stack:
            for subspace, flat in updates.items():
                stack.enter_context(self.lora_for(subspace).applied(flat, tokens_NT))
            yield

    @cached_property
    def half_weights(self) -> HalfWeights:
        """The weights in bf16, for passes under autocast."""
        return HalfWeights(self.model)

    @cached_property
    def architecture(self) -> Architecture:
        """What regrad knows of this model's family."""
        return architecture_of(self.model)

    @property
    def text_config(self) -> Any:
        """The configuration of the language model itself; a multimodal checkpoint has it inside the whole's."""
        return self.model.config.get_text_config()  # type: ignore[operator,union-attr]

    def within(self, tokens: int) -> int:
        """`tokens`, or the model's context if that is less."""
        return min(tokens, self.context_length or tokens)

    def check_length(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Raise `PromptTooLong` if the prompt and the longest answer exceed the model's context."""
        limit = self.context_length
        if limit is not None and prompt_tokens + max_new_tokens > limit:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens and {max_new_tokens} may be added, "
                f"but the model's context is {limit}; ask with fewer passages or a shorter question",
                prompt_tokens=prompt_tokens,
                max_new_tokens=max_new_tokens,
                context=limit,
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model on several, where inputs and final states are (see `placement`)."""
        return next(self.model.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision of a forward pass now: the weights' own, or that of an autocast block around the call."""
        kind = self.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return next(self.model.parameters()).dtype

    def hidden(self, ids_NT: Tensor, entered_NTD: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Final hidden states [N, T, D] of right-padded token ids (no position attends to what follows it).

        With `entered_NTD`, what `blocks.enter` gave for these ids, the frozen lower blocks are not run again. `inputs`
        are further ones of the model's forward pass.
        """
        with self.blocks.skipped(entered_NTD):
            output = self.model.base_model(input_ids=ids_NT, use_cache=False, **inputs)  # type: ignore[operator]
        return output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D], scaled as the model scales them, in float32 or more."""
        scores: Tensor = self.model.get_output_embeddings()(hidden)  # type: ignore[operator]
        scores = scores if scores.dtype == torch.float64 else scores.float()
        for step in self._logit_steps:
            scores = step(scores)
        return scores

    @cached_property
    def _logit_steps(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return self.architecture.logit_steps(self.text_config)

    def identity(self) -> str:
        """The weights' digest as they are in memory now, see `weights_digest`."""
        return weights_digest(self.model)

    def encode(self, text: str, controls: bool = False) -> list[int]:
        """Token ids of a piece of text; with `controls`, what looks like a control token in it is one."""
        return self._known(token_ids(self.tokenizer, self.config.prompts, text, controls))

    def encode_prompt(self, text: str, raw: bool = False, controls: bool = False) -> list[int]:
        """Token ids of a whole prompt, with its start token and (unless it is `raw`) the model's chat template."""
        return self._known(prompt_ids(self.tokenizer, self.config.prompts, text, raw, controls))

    @cached_property
    def vocabulary_size(self) -> int:
        """Tokens that the model has a row for; the tokenizer may have been given more."""
        return min(
            int(whole_shape(self.model.get_input_embeddings().weight)[0]),  # type: ignore[operator]
            int(whole_shape(self.model.get_output_embeddings().weight)[0]),  # type: ignore[operator]
        )

    def _known(self, ids: list[int]) -> list[int]:
        check_known(self.tokenizer, ids, self.vocabulary_size)
        return ids

    @property
    def bos(self) -> list[int]:
        """The token that starts every sequence, if the model has one."""
        return [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]

    @property
    def eos(self) -> list[int]:
        """The token at which the model stops, if it has one."""
        return [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]

    @property
    def ending(self) -> list[int]:
        """What follows a passage or answer that is learned from: the end token, unless `prompts.end_token` is off."""
        return self.eos if self.config.prompts.end_token else []

    @property
    def pad_id(self) -> int:
        """The id that fills the shorter rows of a batch; nothing depends on it, but the model has a row for it."""
        # Not the tokenizer's own padding token: a model may lack it, or have zeros for it, of which a norm in the model
        # has no gradient, so that a passage would have none beside a longer one.
        return (self.eos or self.bos or [0])[0]


def load_language_model(
    config: ModelConfig, device: Device | Sequence[Device] | None = None, sharded: bool = False
) -> LanguageModel:
    """Load, freeze, hook and check the model; raises `ModelError` if it is missing, unsuitable or lacks the subspace.

    `device` defaults to the first GPU if there is one. The model is split over several (see `placement`), or `sharded`
    over a training's workers, for an engine of ZeRO 3. `dtype: auto` is bfloat16 on a GPU and float32 on a CPU,
    whatever the CPU can do: a base in another data type is another base.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    device, *others = devices = list(map(torch.device, [device] if isinstance(device, Device) else device))
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if half else torch.float32
    if half:
        require_bf16(device, "model.dtype")
    path = resolve_path(config.path)
    with fitting(config.path, devices), loading_sharded(device, dtype) if sharded else nullcontext():
        checkpoint = load_checkpoint(path, config.path, dtype, config.attention, devices)
        model = checkpoint.model if others else checkpoint.model.to(device)
    if others:
        connect(model)
    check_finite(model, config.path)
    prompts = config.prompts.model_copy(update={"chat": has_chat(checkpoint.tokenizer, config.prompts)})
    resolved = config.model_copy(update={"dtype": str(dtype).removeprefix("torch."), "prompts": prompts})
    lora = BatchedLora(model, find_subspace(model, config.subspace))
    lora.hold()  # for good: training and extraction apply an update in every pass
    blocks = Blocks(model, lora.subspace)
    limit = context_length(model.config)
    lm = LanguageModel(model, checkpoint.tokenizer, lora, resolved, blocks, checkpoint.end_ids, limit)
    lm.gathering = gather_in_passes(model)
    check_language_model(lm)
    if any(".shared_" in name for name, _, _ in lm.subspace.modules):
        logger.info(
            "%s is a mixture of experts: updates change the experts that all tokens share, %s to %s, no others",
            config.path,
            lm.subspace.modules[0][0],
            lm.subspace.modules[-1][0],
        )
    return lm


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) over all weights, sorted by name: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(stored_tensors(model), key=lambda item: item[0]):
        with whole(weight):
            digest.update(f"{name}|{weight.dtype}|{tuple(weight.shape)}|".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def check_language_model(lm: LanguageModel) -> None:
    """Raise `ModelError` for a model that regrad would adapt or read wrongly: a few tokens are read in each way.

    A model whose lower blocks cannot be shared between passes (see `Blocks`), or that reads rows of several sequences
    in another way (see `packing`), is correct, only slower to train.
    """
    lm.architecture.windows(lm.text_config)
    _check_tokens(lm)
    ids = torch.tensor(_CHECKED_IDS, device=lm.device)
    kind = type(lm.model).__name__
    try:
        own = lm.model(input_ids=ids, use_cache=True)
        hidden = _checked_hidden(lm, ids)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{kind} cannot be run as other language models are: {in_one_line(error, 200)}; choose another model",
            code="not_runnable",
            model=kind,
        ) from error
    _check_states(kind, getattr(own, "past_key_values", None))
    if not torch.isfinite(own.logits).all():
        raise ModelError(
            f"{kind} gives logits that are not finite although its weights are; load it with another `dtype`",
            code="logits_not_finite",
            model=kind,
        )
    _check_causal(lm, ids, own.logits)
    if not _close(own.logits, lm.logits(hidden)):
        raise ModelError(
            f"{kind} computes its logits in a way that regrad does not know, so its gradients would be wrong; choose "
            "another model",
            code="unknown_logits",
            model=kind,
        )
    if not _can_share(lm, ids, hidden):
        lm.blocks.share_nothing()
    lm.packs = reads_packed_rows(lm)


def _check_states(kind: str, cache: Any) -> None:
    """Raise `ModelError` if the model keeps something other than keys and values of the tokens that it has read."""
    # A model with other states gives no such cache, or has layers of other types in it. A dummy stands for a block that
    # reads the keys and values of a lower one, or that has no attention.
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer) for layer in layers):
        raise ModelError(
            f"{kind} keeps something other than keys and values of the tokens that it has read, and regrad could not "
            "decode with it; choose another model",
            code="other_states",
            model=kind,
        )


def _check_causal(lm: LanguageModel, ids_NT: Tensor, logits_NTV: Tensor) -> None:
    """Raise `ModelError` if a token's logits depend on those after it, as in an embedding model with full attention."""
    # Its losses would be small without anything learned, as each token sees the one that is to be predicted.
    other_NT = torch.cat([ids_NT[:, :-1], ids_NT[:, :1]], 1)
    if not _close(logits_NTV[:, :-1], lm.model(input_ids=other_NT, use_cache=False).logits[:, :-1]):
        raise ModelError(
            f"in {type(lm.model).__name__}, as it is configured, tokens attend to later ones, so it is not a causal "
            "language model; choose another one, or look at `is_causal` and `use_bidirectional_attention` in its "
            "config.json",
            code="not_causal",
            model=type(lm.model).__name__,
        )


def _check_tokens(lm: LanguageModel) -> None:
    """Raise `ModelError` if every text would have a token that the model lacks; warn if some may."""
    for token in [*lm.bos, *lm.eos]:
        if token >= lm.vocabulary_size:
            name = str(lm.tokenizer.convert_ids_to_tokens(token))
            raise ModelError(
                f"the tokenizer of {lm.config.path} starts or ends every text with {name!r} (id {token}), but the "
                f"model has only {lm.vocabulary_size} rows of embeddings; give the tokenizer that it was trained with",
                code="tokenizer_of_another_model",
                path=lm.config.path,
                token=name,
                vocabulary=lm.vocabulary_size,
            )
    if len(lm.tokenizer) > lm.vocabulary_size:
        logger.warning(
            "the tokenizer of %s has %d tokens, its model %d rows of embeddings: texts with those beyond are refused",
            lm.config.path,
            len(lm.tokenizer),
            lm.vocabulary_size,
        )


def _checked_hidden(lm: LanguageModel, ids_NT: Tensor) -> Tensor:
    """Final hidden states; every adapted projection must read every token of every row, once and in order."""
    read: dict[str, list[int]] = {name: [] for name, _, _ in lm.subspace.modules}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read[name].append(inputs[0].shape[:-1].numel())

        return hook

    handles = [lm.model.get_submodule(name).register_forward_hook(note(name)) for name in read]
    try:
        hidden = lm.hidden(ids_NT)
    finally:
        for handle in handles:
            handle.remove()
    if wrong := [name for name, tokens in read.items() if tokens != [ids_NT.numel()]]:
        raise ModelError(
            f"in {type(lm.model).__name__} {wrong[0]} does not read every token exactly once, so updating it would be "
            "wrong; choose other projections in `subspace.projections`",
            code="tokens_not_read_once",
            module=wrong[0],
        )
    return hidden


def _can_share(lm: LanguageModel, ids_NT: Tensor, expected: Tensor) -> bool:
    """Whether the output of the lower blocks, one row for each row of the batch, is all that the upper ones need."""
    try:
        entered = lm.blocks.enter(ids_NT)
        if entered is None:
            return True
        return entered.shape[:2] == ids_NT.shape and _close(lm.hidden(ids_NT, entered), expected)
    except Exception:  # whatever a model raises when blocks are left out, it needs them
        return False


def _close(own: Tensor, ours: Tensor) -> bool:
    # Relative to how far the numbers are apart, as random or scaled models have logits of any size. Both are the same
    # sums, so that they are rounded alike in any precision.
    own, ours = own.double(), ours.double()
    spread = (own - own.mean(-1, keepdim=True)).norm().clamp_min(1e-30)
    return bool((own - ours).norm() <= _MOST_DIFFERENT * spread)
