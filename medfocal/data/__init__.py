"""Cases on disk: phantoms, manifests and what becomes of them before training."""
