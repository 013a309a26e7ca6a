"""Run functions in threads that take turns, in an order that a seed decides, or freely."""

import random
import threading
from collections.abc import Callable, Mapping

PATIENCE = 0.5  # seconds without a switch, after which a waiting thread goes on


class Turns:
    """Lets one thread run at a time, until it calls `switch`.

    If the running thread waits for another one, at a lock for example, that one goes on after
    `PATIENCE` seconds, so that the two do not wait for each other.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.switched = threading.Condition()
        self.alive: list[str] = []  # names of the threads that have not ended
        self.current: str | None = None  # name of the thread whose turn it is
        self.num_switches = 0

    def run(self, threads: Mapping[str, Callable[[], None]]) -> None:
        """Run every function in a thread of its own, to its end."""
        self.alive = list(threads)
        started = [
            threading.Thread(target=self._run, name=name, args=(function,))
            for name, function in threads.items()
        ]
        with self.switched:
            self._choose_next()
        start_and_join(started)

    def switch(self) -> None:
        """Choose the next thread at random, perhaps this one, and wait for this one's turn."""
        with self.switched:
            self._choose_next()
            self._wait_for_turn()

    def _run(self, function: Callable[[], None]) -> None:
        with self.switched:
            self._wait_for_turn()
        try:
            function()
        finally:
            with self.switched:
                self.alive.remove(threading.current_thread().name)
                self._choose_next()

    def _choose_next(self) -> None:
        self.current = self.random.choice(self.alive) if self.alive else None
        self.num_switches += 1
        self.switched.notify_all()

    def _wait_for_turn(self) -> None:
        this_thread = threading.current_thread().name
        while self.current != this_thread:
            before = self.num_switches
            self.switched.wait(PATIENCE)
            if self.num_switches == before:  # the current thread itself waits for something
                self.current = this_thread
                self.num_switches += 1


class Freely:
    """Lets all threads run at once, with the interface of `Turns`."""

    def run(self, threads: Mapping[str, Callable[[], None]]) -> None:
        """Run every function in a thread of its own, to its end."""
        start_and_join(
            [threading.Thread(target=function, name=name) for name, function in threads.items()]
        )

    def switch(self) -> None:
        """Do nothing: the interpreter switches threads at any time."""


def start_and_join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), f"{thread.name} hangs"
