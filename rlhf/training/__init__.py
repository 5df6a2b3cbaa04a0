"""The one training loop of all supervised stages, and the pieces (optimizer, step, checkpoints) that PPO uses as well."""
