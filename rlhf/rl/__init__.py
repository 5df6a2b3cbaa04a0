"""Reinforcement learning from reward models: rollout → score → update, each a pure function that is compiled once."""
