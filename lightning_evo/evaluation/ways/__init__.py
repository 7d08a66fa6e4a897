"""Ways of running members, one per file; :mod:`.plain` is the loop that all others must equal.

:mod:`.perturbed` puts members in the place of weights for :mod:`.in_forward` and :mod:`.batched`. What a torch function
gives for a member is in :mod:`.rules` and :mod:`.low_rank`, once for all :mod:`.layouts`. :mod:`.places` follows the
rows of members that share one batch.
"""
