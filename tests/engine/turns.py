"""Threads that take turns in an order that a seed decides."""

import random
import threading
from collections.abc import Callable, Mapping

PATIENCE = 0.5  # seconds without a switch after which a waiting thread goes on


class Turns:
    """Lets one thread run at a time; the running one hands on where it calls `switch`.

    A running thread that waits for another one (in a lock, say) stops nobody: after `PATIENCE` the
    other goes on.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.changed = threading.Condition()
        self.alive: list[str] = []
        self.current: str | None = None
        self.switches = 0

    def run(self, threads: Mapping[str, Callable[[], None]]) -> None:
        """Run every function in a thread of its own, to its end."""
        self.alive = list(threads)
        started = [threading.Thread(target=self._run, name=n, args=(threads[n],)) for n in threads]
        with self.changed:
            self._hand_on()
        for thread in started:
            thread.start()
        for thread in started:
            thread.join(120)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def switch(self) -> None:
        """Let a thread go on that the seed decides, perhaps this one."""
        with self.changed:
            self._hand_on()
            self._wait()

    def _run(self, function: Callable[[], None]) -> None:
        with self.changed:
            self._wait()
        try:
            function()
        finally:
            with self.changed:
                self.alive.remove(threading.current_thread().name)
                self._hand_on()

    def _hand_on(self) -> None:
        self.current = self.random.choice(self.alive) if self.alive else None
        self.switches += 1
        self.changed.notify_all()

    def _wait(self) -> None:
        me = threading.current_thread().name
        while self.current != me:
            switches = self.switches
            moved = self.changed.wait_for(lambda n=switches: self.switches != n, PATIENCE)
            if not moved:
                self.current, self.switches = me, switches + 1


class Free:
    """Threads that run as the interpreter lets them, with the interface of the other class."""

    def run(self, threads: Mapping[str, Callable[[], None]]) -> None:
        started = [threading.Thread(target=function) for function in threads.values()]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join(120)
            assert not thread.is_alive(), "a thread hangs"

    def switch(self) -> None:
        pass
