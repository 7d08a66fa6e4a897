"""Language models that learn from rewards: reward functions, prompts, and the module that generates."""
