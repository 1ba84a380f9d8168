"""What a test looks for when something is over: threads that are still there."""

import threading


def running_threads() -> set[threading.Thread]:
    """The threads there are. `running_threads() <= before`: none has been left, whatever those of other tests have done meanwhile.

    Threads of drivers that once called into Python are not counted: they are not ours to end.
    """
    return {t for t in threading.enumerate() if not isinstance(t, threading._DummyThread)}
