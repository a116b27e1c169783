"""The release's learner on our base, at a start of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrad.bank.io.learned_start import LEARNER, PEFT, STATE
from regrad.meta_init import MetaInit
from regrad.training.meta.config import StepSizeMode
from releases.code import Release
from releases.subject import QUESTION, Subject


class Authors:
    """The release's learner on our base, put at a start of ours; its attention is the one that ours uses."""

    def __init__(self, release: Release, subject: Subject) -> None:
        self.release, self.subject = release, subject
        release.ICL.simple_ICLprompt_question = QUESTION

    def learner(self, start: MetaInit, mode: StepSizeMode = "tie") -> Any:
        """Written as the release writes a start, and loaded by its own function."""
        folder = self.subject.folder / "start"
        folder.mkdir(exist_ok=True)
        write_start(folder, start, self.subject.base, mode)
        found = self.release.Meta.load_Metalearner(str(folder), device=torch.device("cpu"))
        found.base_model.base_model.model.set_attn_implementation("eager")
        return found

    def atom(self, learner: Any, text: str, start: MetaInit) -> Tensor:
        """Of one passage [P]."""
        meta = self.release.Meta
        gradients = meta.compute_gradients(learner, meta.get_train_data(learner.tokenizer, text), create_graph=False)
        return flat(gradients, start)


def flat(tensors: Any, start: MetaInit) -> Tensor:
    """Tensors by the release's names, in the order of our subspace [P]."""
    return start.subspace.flatten({name: tensors[their_name(name)].detach().float() for name in start.subspace.shapes})


def their_name(name: str) -> str:
    """What the release calls a tensor of the subspace."""
    return f"base_model.model.{name[:-2]}.lora_{name[-1]}.default.weight"


def write_start(folder: Path, start: MetaInit, base: str, mode: StepSizeMode) -> None:
    """The three files of a start of the release."""
    tensors = start.subspace.unflatten(start.phi0)
    state = {f"base_model.{their_name(name)}": tensor.clone() for name, tensor in tensors.items()}
    for number, (name, shape) in enumerate(start.subspace.shapes.items()):
        alpha = start.step_sizes[number].clone()
        key = f"alpha_{their_name(name).replace('.', '-')}"
        if mode in ("tie", "full"):
            state[key] = alpha if mode == "tie" else alpha.expand(shape).clone()
    if mode == "same":
        state["alpha"] = start.step_sizes.mean()
    torch.save(state, folder / STATE)
    modules = [name for name, _, _ in start.subspace.modules]
    rank = start.subspace.rank
    peft = {"peft_type": "LORA", "r": rank, "lora_alpha": int(start.subspace.scaling * rank), "target_modules": modules}
    (folder / PEFT).write_text(json.dumps(peft))
    learner = {"base_model_name_or_path": base, "init_alpha": 0.01, "alpha_mode": mode, "use_simple_prompt": True}
    (folder / LEARNER).write_text(json.dumps(learner))
