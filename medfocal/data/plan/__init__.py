"""What a dataset is like, and how to train on it: measured, then proposed with reasons."""
