"""Processes of their own in which reward functions run, and can be killed with all that they started.

:mod:`.pool` hands out calls, :mod:`.process` is one worker as the training sees it, :mod:`.worker` what runs in it, and
:mod:`.guard` the process in between, which sees to its end. Workers import none of torch and Lightning.
"""
