"""Ways to the same meta-gradient: `graph`, `hvp`, `difference`; and `first-order`, an approximation, as an ablation."""
