"""The training loop: data in, a trained model, its log and its checkpoints out."""
