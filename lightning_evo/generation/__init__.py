"""One generation: ask, evaluate, gather, reduce, shape, update. :mod:`.evolution` wires the rooms below together."""
