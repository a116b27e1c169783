"""Banks in and out: tensors, other banks, what the releases of ReGrad and PRAG saved."""
