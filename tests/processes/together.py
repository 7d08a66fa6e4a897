"""Processes of one run as threads that take turns: each waits only where it hands on what it found."""

import threading


def together(run, count):
    """What ``run(rank, gather_from_all)`` gives for each rank; raises what the first one raises.

    One thread runs at a time, so that they may change what belongs to a whole process, such as torch's random numbers.
    """
    turn, barrier, messages = threading.Lock(), threading.Barrier(count), [{} for _ in range(1000)]
    results, errors = [None] * count, [None] * count

    def process(rank):
        ahead = iter(messages)

        def gather_from_all(values):
            message = next(ahead)
            message[rank] = values.clone()
            turn.release()
            try:
                barrier.wait(30)
            finally:
                turn.acquire()
            return [message[sender].clone() for sender in range(count)]

        with turn:
            try:
                results[rank] = run(rank, gather_from_all)
            except Exception as error:
                errors[rank] = error

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for error in errors:
        if error is not None:
            raise error
    return results
