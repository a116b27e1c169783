"""A start as the ReGrad release saves it becomes a MetaInit that gives the release's updates; anything odd is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from regrad.bank.config import LearnedStartConfig
from regrad.bank.io.learned_start import LEARNER, PEFT, STATE, import_learned_start
from regrad.cli.main import regrad
from regrad.errors import MetaInitError, ModelError
from regrad.lab.wording import LAB_PROMPTS
from regrad.meta_init import MetaInit
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from tests.tools.refusals import refused

NAME = "base_model.base_model.model.model.layers.3.mlp.up_proj.lora_A.default.weight"
ALPHA = "alpha_base_model-model-model-layers-3-mlp-up_proj-lora_A-default-weight"
TARGETS = [f"model.layers.{layer}.mlp.{name}" for layer in (2, 3) for name in ("gate_proj", "up_proj")]


class Learner(nn.Module):
    """The parameters of the release's MetaLearner, by their names there: one step size for each trained tensor."""

    def __init__(self, base_model: nn.Module, mode: str) -> None:
        super().__init__()
        self.base_model = base_model
        torch.manual_seed(3)
        if mode == "same":
            self.alpha = nn.Parameter(torch.tensor(0.07))
        for name, value in list(base_model.named_parameters()):
            if value.requires_grad and mode in ("tie", "full"):
                alpha = torch.rand(()) if mode == "tie" else torch.rand_like(value)
                self.register_parameter(f"alpha_{name.replace('.', '-')}", nn.Parameter(alpha))

    def meta_state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.named_parameters() if value.requires_grad}


@pytest.fixture
def peft_model(tiny_path: Path) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(tiny_path)), config)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value)
    return model


Write = Callable[..., Path]


@pytest.fixture
def write(peft_model: Any, tmp_path: Path) -> Write:
    """Writes a start as the release's Meta.py does, and returns its directory."""

    def written(mode: str = "tie", **changes: Any) -> Path:
        peft = peft_model.peft_config["default"].to_dict()
        peft |= {"peft_type": "LORA", "target_modules": sorted(peft["target_modules"])}
        learner = {
            "base_model_name_or_path": "llama",
            "init_alpha": 0.01,
            "alpha_mode": mode,
            "use_simple_prompt": False,
        }
        state = Learner(peft_model, mode).meta_state_dict()
        folder = tmp_path / "start"
        folder.mkdir(exist_ok=True)
        torch.save({**state, **changes.pop("state", {})}, folder / STATE)
        (folder / PEFT).write_text(json.dumps({**peft, **changes.pop("peft", {})}))
        (folder / LEARNER).write_text(json.dumps({**learner, **changes.pop("learner", {})}))
        return folder

    return written


@pytest.fixture
def model(tiny_path: Path) -> ModelConfig:
    return ModelConfig(path=str(tiny_path), prompts=LAB_PROMPTS)


def settings(source: Path, tmp_path: Path, model: ModelConfig) -> LearnedStartConfig:
    return LearnedStartConfig(source=str(source), model=model, output=str(tmp_path / "m"))


@pytest.mark.parametrize("mode", ["tie", "same", "full", "fix"])
def test_the_update_is_the_releases(
    write: Write, model: ModelConfig, peft_model: Any, tmp_path: Path, mode: str
) -> None:
    """param - alpha * gradient for each of its tensors, as its creators of models compute it."""
    folder = write(mode)
    import_learned_start(settings(folder, tmp_path, model))
    loaded = MetaInit.load(tmp_path / "m")
    assert (loaded.step_size_mode, loaded.notes["base_model_name_or_path"]) == (mode, "llama")
    lm = load_language_model(loaded.model, "cpu")
    loaded.check_base(lm)
    atom = torch.randn(loaded.subspace.size, generator=torch.Generator().manual_seed(4))
    gradients, updated = loaded.subspace.unflatten(atom), loaded.subspace.unflatten(loaded.update(atom))
    parameters, alphas = dict(peft_model.named_parameters()), dict(Learner(peft_model, mode).named_parameters())
    for name, ours in updated.items():
        theirs = f"base_model.model.{name[:-2]}.lora_{name[-1]}.default.weight"
        one = alphas.get("alpha", torch.tensor(0.01))
        alpha = alphas.get(f"alpha_{theirs.replace('.', '-')}", one)
        torch.testing.assert_close(ours, parameters[theirs] - alpha * gradients[name])
    ids = torch.tensor([[1, 5, 9, 30, 4]])
    with torch.no_grad(), lm.lora.applied(loaded.phi0):
        torch.testing.assert_close(lm.model(input_ids=ids).logits, peft_model(input_ids=ids).logits)


def test_rank_stabilised_scaling_is_understood(write: Write, model: ModelConfig, tmp_path: Path) -> None:
    made = import_learned_start(settings(write(peft={"use_rslora": True}), tmp_path, model))
    assert made.subspace.scaling == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("changes", "code", "fields"),
    [
        ({"peft": {"r": "4"}}, "wrong_key", {"key": "r"}),
        ({"peft": {"lora_alpha": None}}, "wrong_key", {"key": "lora_alpha"}),
        ({"peft": {"peft_type": "IA3"}}, "wrong_key", {"key": "peft_type"}),
        ({"peft": {"use_dora": True}}, "wrong_key", {"key": "use_dora"}),
        ({"peft": {"rank_pattern": {"up_proj": 2}}}, "wrong_key", {"key": "rank_pattern"}),
        ({"peft": {"invented_later": 1}}, "wrong_key", {"key": "invented_later"}),
        ({"learner": {"alpha_mode": "tied"}}, "wrong_key", {"key": "alpha_mode"}),
        ({"learner": {"init_alpha": "small"}}, "wrong_key", {"key": "init_alpha"}),
        ({"state": {NAME: torch.zeros(4, 31)}}, "wrong_tensor", {"tensor": "model.layers.3.mlp.up_proj.A"}),
        ({"state": {NAME: torch.full((4, 32), torch.nan)}}, "wrong_tensor", {"tensor": NAME}),
        ({"state": {NAME: 3}}, "wrong_tensor", {"tensor": NAME}),
        ({"state": {ALPHA: torch.zeros(2)}}, "wrong_tensor", {"tensor": "model.layers.3.mlp.up_proj.A"}),
        ({"state": {"lm_head.weight": torch.zeros(2)}}, "wrong_tensor", {"tensor": "lm_head.weight"}),
        ({"mode": "fix", "learner": {"alpha_mode": "same"}}, "wrong_tensor", {"tensor": "alpha"}),
        ({"mode": "fix", "learner": {"alpha_mode": "tie"}}, "wrong_tensor", {}),
        ({"state": {"x": Path("x")}}, "unsafe_start", {"file": STATE}),
    ],
)  # fmt: skip
def test_the_key_or_tensor_at_fault_is_named(
    write: Write, model: ModelConfig, tmp_path: Path, changes: dict[str, Any], code: str, fields: dict[str, str]
) -> None:
    folder = write(**changes)
    with refused(MetaInitError, code, **fields):
        import_learned_start(settings(folder, tmp_path, model))
    assert not (tmp_path / "m").exists()


def test_files_that_are_missing_or_damaged_are_named(write: Write, model: ModelConfig, tmp_path: Path) -> None:
    for name in (STATE, PEFT, LEARNER):
        folder = write()
        (folder / name).unlink()
        with refused(MetaInitError, "incomplete_start", file=name):
            import_learned_start(settings(folder, tmp_path, model))
        write()
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
        with refused(MetaInitError, "damaged_start" if name == STATE else "not_json", file=name):
            import_learned_start(settings(folder, tmp_path, model))


def test_a_start_of_a_larger_model_is_refused(write: Write, model: ModelConfig, tmp_path: Path) -> None:
    state = {NAME.replace(".3.", ".9."): torch.zeros(4, 32)}
    with refused(ModelError, "projection_not_found", missing=[(9, "mlp.gate_proj"), (9, "mlp.up_proj")]):
        import_learned_start(settings(write(state=state), tmp_path, model))


def test_the_command_says_what_was_made(write: Write, model: ModelConfig, tmp_path: Path) -> None:
    values = [f"source={write()}", f"model.path={model.path}", f"output={tmp_path}/m"]
    done = CliRunner().invoke(regrad, ["meta-init", "import", *(item for value in values for item in ("--set", value))])
    assert done.exit_code == 0, done.output
    made = MetaInit.load(tmp_path / "m")
    assert done.output.startswith(f"MetaInit {made.fingerprint} at {tmp_path}/m: 4 projections, rank 4, step sizes 0.")
    assert not made.model.prompts.end_token, "the built-in file's prompts are the release's"
