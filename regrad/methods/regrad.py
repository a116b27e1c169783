"""ReGrad: the retrieved passages' gradients as a temporary update; with ICL, the passages in the prompt as well.

ReGrad Online computes the gradients when they are needed; the update is the same, up to the codec's error.
"""

from regrad.methods.base import Method

REGRAD = Method("regrad", "gradients applied, nothing in the prompt", passages_in_prompt=False, applies_gradients=True)
REGRAD_ICL = Method(
    "regrad+icl", "gradients applied, passages in the prompt", passages_in_prompt=True, applies_gradients=True
)
REGRAD_ONLINE = Method(
    "regrad-online",
    "gradients computed now, nothing in the prompt",
    passages_in_prompt=False,
    applies_gradients=True,
    computes_gradients=True,
)
