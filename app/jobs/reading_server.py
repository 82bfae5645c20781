"""
The program that reading processes are forked from, each when it is asked for (``reading_process`` starts it).

It has imported everything, read nothing and has no secret, so that a process costs milliseconds and holds nothing but
its task. A request is a byte with two sockets: the channel of the task (``reading_task``), and one on which the exit
status is told. Who closes the latter ends the process; who closes the socket of the requests ends this program, too.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys

from app.jobs.reading_task import ReadingTask


class ReadingServer:
    """
    Forks a process for each request.

    Args:
        requests: the socket on which they come.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._reports: dict[int, socket.socket] = {}  # by process
        self._selector = selectors.DefaultSelector()
        self._ended, waker = socket.socketpair()
        for end in (self._ended, waker):
            end.setblocking(False)
        self._waker = waker
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it reaches the descriptor
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(requests, selectors.EVENT_READ, None)
        self._selector.register(self._ended, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Until the socket of the requests is closed; then every process is ended."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._requests:
                    content, descriptors, _, _ = socket.recv_fds(self._requests, 1, 2)
                    if not content:
                        for process in self._reports:
                            os.kill(process, signal.SIGKILL)
                        return
                    channel, report = (socket.socket(fileno=descriptor) for descriptor in descriptors)
                    with channel:
                        self._begin(channel, report)
                elif key.fileobj is self._ended:
                    self._tell_ends()
                elif self._reports.get(key.data) is key.fileobj:  # nobody waits for it, and it has not just ended
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _begin(self, channel: socket.socket, report: socket.socket) -> None:
        process = os.fork()
        if process == 0:
            self._run(channel, report)
        self._reports[process] = report
        self._selector.register(report, selectors.EVENT_READ, process)

    def _run(self, channel: socket.socket, report: socket.socket) -> None:
        """The forked process, which holds its channel and nothing else."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for end in (self._requests, self._ended, self._waker, report, *self._reports.values()):
                end.close()
            with contextlib.suppress(BrokenPipeError, EOFError):
                ReadingTask(channel).run()
            status = 0
        finally:
            os._exit(status)

    def _tell_ends(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._ended.recv(4096):
                pass
        for process in list(self._reports):
            found, status = os.waitpid(process, os.WNOHANG)
            if not found:
                continue
            report = self._reports.pop(process)
            with contextlib.suppress(KeyError):
                self._selector.unregister(report)
            with report, contextlib.suppress(OSError):
                report.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def main() -> None:
    """Serve on the socket whose descriptor is the first argument."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # its parent's end closes the socket
    gc.collect()
    gc.freeze()  # what was imported stays shared between the processes
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        ReadingServer(requests).serve()


if __name__ == "__main__":
    main()
