"""Stage 2 of the method dpo: the actor learns from the pairs themselves."""
