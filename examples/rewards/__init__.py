"""A language model is rewarded for short and right answers."""
