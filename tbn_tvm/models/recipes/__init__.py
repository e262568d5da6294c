"""Training recipes: which model, which data, which optimisation."""
