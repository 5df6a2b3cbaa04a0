"""Where a run's numbers go: JSONL files always, Weights & Biases and TensorBoard when asked, and the terminal."""
