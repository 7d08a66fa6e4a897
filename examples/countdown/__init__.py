"""Countdown, the game with numbers, learnt from rewards alone."""
