"""Loading a text encoder's network: what sentence-transformers saved, or one of DPR's as transformers saves it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, DPRContextEncoder, DPRQuestionEncoder

from regrad.errors import RetrievalError
from regrad.models.local_files import resolve_path

_DPR = {"DPRContextEncoder": DPRContextEncoder, "DPRQuestionEncoder": DPRQuestionEncoder}
_NOT_OF_BERT = frozenset({"model_type", "architectures", "projection_dim", "transformers_version", "_name_or_path"})


def load_sentence_model(name: str, device: str | None) -> Any:
    """The `SentenceTransformer` of a path or hub name, ready to encode; raises `RetrievalError` if there is none."""
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise RetrievalError(
            "dense retrieval needs sentence-transformers: pip install 'regrad[dense]'", code="no_encoders"
        ) from error
    path = resolve_path(name)
    try:
        if architecture := _dpr_architecture(path):
            return _dpr_model(path, architecture, device).eval()
        # No code that comes with a model is run, and no pickled weights are read.
        return SentenceTransformer(
            path, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        ).eval()
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RetrievalError(
            f"no encoder could be loaded from {name}: {reason}", code="no_encoder", path=name
        ) from error


def _dpr_architecture(path: str) -> str:
    """The class of a model of DPR's that transformers saved; empty for any other model."""
    folder = Path(path)
    if (folder / "modules.json").exists() or (folder.is_dir() and not (folder / "config.json").exists()):
        return ""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return ""  # not of transformers: sentence-transformers says what it lacks
    return (config.architectures or ["no architecture"])[0] if config.model_type == "dpr" else ""


def _dpr_model(path: str, architecture: str, device: str | None) -> Any:
    """DPR's vector is the last layer's at the first token, [CLS].

    sentence-transformers would read any of DPR's as a question encoder, and take new random weights for what it lacks.
    So the BERT inside is loaded by DPR's own class, and handed over as a plain one.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if architecture not in _DPR:
        raise ValueError(f"it is a {architecture}, and of DPR only {' and '.join(_DPR)} give vectors")
    whole, loading = _DPR[architecture].from_pretrained(path, use_safetensors=True, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"its file lacks weights of a {architecture}: {', '.join(missing)[:200]}")
    if whole.config.projection_dim:
        raise ValueError("its projection is not loaded; save it for sentence-transformers: Transformer, Pooling, Dense")
    inner = (whole.ctx_encoder if architecture == "DPRContextEncoder" else whole.question_encoder).bert_model
    config = BertConfig(**{name: value for name, value in whole.config.to_dict().items() if name not in _NOT_OF_BERT})
    bert = BertModel(config)
    bert.load_state_dict(inner.state_dict(), strict=False)
    for weights in bert.pooler.parameters():  # DPR has none; what is random would change the digest at each loading
        weights.data.zero_()
    with TemporaryDirectory() as folder:
        bert.save_pretrained(folder)
        AutoTokenizer.from_pretrained(path, trust_remote_code=False).save_pretrained(folder)
        words = Transformer(folder)
        return SentenceTransformer(modules=[words, Pooling(config.hidden_size, "cls")], device=device)
