"""Stage 3: PPO."""
