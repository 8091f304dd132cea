"""Ctrl-C and SIGTERM while training: finish the iteration, save, then leave."""

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop; the message says what is kept and how to go on."""


class Interrupts:
    """While entered, SIGINT and SIGTERM set `requested`, or raise `TrainingInterrupted` if `at_once`.

    A second SIGINT always raises. A request that nobody acted on raises when the context is left. Outside the main
    thread, where Python takes no signals, nothing is caught. `message` may be changed meanwhile.
    """

    def __init__(self, message: str, at_once: bool = False) -> None:
        self.message, self.at_once = message, at_once
        self.requested = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as `signal.signal` returned it
        if kind is None and self.requested:
            raise TrainingInterrupted(self.message)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # A launcher passes Ctrl-C on as SIGTERM, so one keystroke may arrive as both: only SIGINT counts twice.
        again = self.requested and number == signal.SIGINT
        self.requested = True
        if self.at_once or again:
            raise TrainingInterrupted(self.message)
