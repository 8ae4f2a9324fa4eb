"""Training: a run folder goes in, a trained and evaluated model comes out."""
