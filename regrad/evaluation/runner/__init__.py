"""Methods x sets x models x k x seeds: the plan of all cells, and running one of them."""
