"""ReGrad: the retrieved passages' gradients as a temporary update; with ICL, the passages in the prompt as well."""

from regrad.methods.base import Method

REGRAD = Method("regrad", "gradients applied, nothing in the prompt", passages_in_prompt=False, applies_gradients=True)
REGRAD_ICL = Method(
    "regrad+icl", "gradients applied, passages in the prompt", passages_in_prompt=True, applies_gradients=True
)
