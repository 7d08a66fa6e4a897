"""Learning curves of finished runs: read from where loggers left them, told apart, and drawn in one picture.

=================  ===========================================================
:mod:`.runs`       a run as its folder has it: values by step, and its settings
:mod:`.groups`     runs that differ in their seeds only, and what to call them
:mod:`.picture`    pictures, by matplotlib
=================  ===========================================================
"""
