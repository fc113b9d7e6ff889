"""The fork server: a small process with one thread that starts workers for its parent.

A program with threads must not be forked: a lock that another thread holds at that
moment stays locked in the child for ever. This process has no other thread, never
runs the user's code, and is small, so that a fork of it takes a millisecond. A worker
is a fork of it, or a fork that at once becomes a fresh interpreter.

Each pool of the parent has a control socket to the server. When it closes, the pool's
workers end; when the parent dies, everything does:

    the parent's pidfd or its root socket says so -> the server kills all workers, exits;
    the server dies -> the kernel kills its workers (PR_SET_PDEATHSIG).

What a worker started ends with it. Its process group is killed, and what left the group
becomes a child of the server when its own parent ends (PR_SET_CHILD_SUBREAPER, Linux), and
is killed then.

The ends of channels that come with an order (orders.py) are closed here as soon as the worker
has them.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import selectors
import sys
from collections import deque
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from plait.backends import child_main
from plait.backends.child_end import leave_finalizers
from plait.backends.child_streams import buffer_lines
from plait.backends.kinship import (
    adopt_orphans,
    die_with_parent,
    kill_family,
    send_signal,
    take_root,
)
from plait.backends.orders import Order, Preload, object_in, receive_order, send_order
from plait.bare import DONT_WAIT, Socket, signal, socketpair
from plait.host import child_pids, monotonic, process_groups, worker_mark
from plait.interpreter import python_command

if TYPE_CHECKING:
    from plait.backends.preloader import Preloader

__all__ = ["main"]

# What workers load when they need it, to log as the parent does and to carry any function, in
# small steps: it is loaded here while nothing is asked, often as the parent is loading as well.
LATE = ("dataclasses", "traceback", "logging", "platform", "uuid", "cloudpickle")
# What the kernel counts ru_maxrss in, in bytes.
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
READ_OR_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE
# So many files come with the order for a worker.
FDS_OF = {b"FORK": 6, b"EXEC": 7}
# When the server ends it waits so long for what it killed, and then no longer.
LAST_WAIT_S = 1


def main(parent_pid: int) -> None:
    """Serve until the parent is gone; does not return."""
    try:
        buffer_lines()  # of workers, who inherit it; none of what is printed here
        gc.freeze()  # all that is here now is needed
        with suppress(PermissionError):  # it leads a session already
            os.setsid()
        _Server(take_root(), parent_pid).serve()
    finally:
        os._exit(0)


class _Child:
    """A worker: whose it is, its number there, and when it is to be killed."""

    def __init__(self, control: Socket, number: int) -> None:
        self.control = control
        self.number = number
        self.kill_at: float | None = None


class _Server:
    """The workers by pid, and whose they are."""

    def __init__(self, root: Socket, parent_pid: int) -> None:
        self._pid = os.getpid()
        self._workers: dict[int, _Child] = {}
        self._untold: dict[Socket, deque[Order]] = {}  # what pools have no room to hear
        self._late = [*reversed(LATE)]
        self._preloader: Preloader | None = None  # until modules are asked for
        self._selector = selectors.DefaultSelector()
        self._selector.register(root, selectors.EVENT_READ, self._open)
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        _, most = self._files
        with suppress(ValueError, OSError):  # many are on their way through it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        adopt_orphans()
        self._watch_parent(parent_pid)
        self._watch_children()
        self._set_signals()
        with suppress(OSError):
            root.send(b"!")  # we have come up

    def _watch_parent(self, pid: int) -> None:
        self._parent_fd = -1
        if hasattr(os, "pidfd_open"):
            # The root socket alone would not do: a child that the parent forked may hold
            # a copy of its other end, and outlive it.
            try:
                self._parent_fd = os.pidfd_open(pid)
            except ProcessLookupError:
                os._exit(0)
            self._selector.register(self._parent_fd, selectors.EVENT_READ, self._end)

    def _watch_children(self) -> None:
        self._bell, bell_end = socketpair()
        self._bell.setblocking(False)
        bell_end.setblocking(False)
        self._bell_end = bell_end
        self._selector.register(self._bell, selectors.EVENT_READ, self._reap)

    def _set_signals(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._bell_end.fileno(), warn_on_full_buffer=False)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # the parent decides when this ends

    def serve(self) -> NoReturn:
        while True:
            patience = self._kill_due()
            ready = self._selector.select(0 if self._late else patience)
            for key, _ in ready:
                key.data(key.fileobj)
            if not ready and self._late:
                self._warm_up()

    def _warm_up(self) -> None:
        """While nothing is asked, load something of what most workers will need."""
        import_module(self._late.pop())
        if not self._late:
            gc.freeze()  # what is never collected is not written to: all workers share it

    @property
    def _children(self) -> set[int]:
        """The processes that were forked here, without what they started."""
        trial = self._preloader.trial_pid if self._preloader is not None else 0
        return {*self._workers, trial} - {0}

    def _kill_due(self) -> float | None:
        """Kill the workers whose time is over; return the seconds until the next is due."""
        now = monotonic()
        left = None
        for pid, worker in self._workers.items():
            if worker.kill_at is None:
                continue
            if worker.kill_at <= now:
                worker.kill_at = None
                kill_family(pid)
            else:
                left = min(left or worker.kill_at - now, worker.kill_at - now)
        return left

    def _end(self, _: object = None) -> NoReturn:
        """Kill every process that stems from here, and exit."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LAST_WAIT_S)  # the last resort: a process may not die, in a broken mount
        with suppress(ChildProcessError):
            while True:
                for pid in {*self._children, *child_pids(self._pid)}:
                    kill_family(pid)
                os.wait()  # its children, if it leaves any, are ours now
        os._exit(0)

    # --- What the parent asks for ------------------------------------------------------

    def _open(self, root: Socket) -> None:
        try:
            order, fds = receive_order(root)
        except (EOFError, OSError):
            self._end()
        for fd in fds:  # none, if there was no room here; then the pool hears the end of it
            if order.verb == b"ERRS":  # we have come up: what is said now is for the user
                os.dup2(fd, 2)
                os.close(fd)
            else:
                self._selector.register(Socket(fileno=fd), selectors.EVENT_READ, self._obey)

    def _obey(self, control: Socket) -> None:
        if control in self._untold:
            self._tell_more(control)
        try:
            order, fds = receive_order(control, flags=DONT_WAIT)
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._close(control)
            return
        self._carry_out(control, order, fds)

    def _carry_out(self, control: Socket, order: Order, fds: list[int]) -> None:
        if order.verb == b"END ":
            self._end_worker(control, order)
        elif order.verb == b"LOAD":
            if fds:
                self._preload(control, Preload(*object_in(*fds)))
        elif len(fds) < FDS_OF[order.verb]:  # there was no room here for all that were sent
            for fd in fds:
                os.close(fd)
            self._tell(control, Order(b"FAIL", order.number, errno.EMFILE))
        elif self._preloader is None or not self._preloader.hold(control, order, fds):
            self._start(control, order, fds)

    def _end_worker(self, control: Socket, order: Order) -> None:
        if self._preloader is not None and self._preloader.drop_held(control, order.number):
            self._tell(control, Order(b"ENDS", order.number, -signal.SIGTERM))
        for pid, worker in self._workers.items():
            if worker.control is control and worker.number == order.number:
                worker.kill_at = monotonic() + order.value / 1000
                if order.value:
                    send_signal(pid, signal.SIGTERM)
                    send_signal(pid, signal.SIGCONT)  # or one that is stopped would not hear it

    def _close(self, control: Socket) -> None:
        self._selector.unregister(control)
        self._untold.pop(control, None)
        if self._preloader is not None:
            self._preloader.forget(control)
        control.close()
        for pid, worker in self._workers.items():
            if worker.control is control:
                kill_family(pid)

    def _start(self, control: Socket, order: Order, fds: list[int]) -> None:
        while order.value and self._late:  # here once, rather than in each worker
            self._warm_up()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(control, Order(b"FAIL", order.number, error.errno or errno.EAGAIN))
            pid = -1
        if pid == 0:
            self._become_worker(control, order.verb, fds)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._workers[pid] = _Child(control, order.number)
            self._tell(control, Order(b"PID ", order.number, pid))

    def _become_worker(self, control: Socket, verb: bytes, fds: list[int]) -> NoReturn:
        try:
            self._become_child()
            if verb == b"EXEC":
                _become_interpreter(fds)
            if self._preloader is not None:
                self._preloader.tidy_up(control)
                leave_finalizers()
            child_main.main(*fds)
        finally:
            os._exit(1)

    def _become_child(self) -> None:
        """In a forked child: let go of all that is the server's."""
        die_with_parent()
        os.setpgid(0, 0)  # so that what its tasks start can be ended with it
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, Socket):
                key.fileobj.close()
        self._selector.close()
        self._bell_end.close()
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
        if os.getppid() != self._pid:  # it died before the kernel was asked to watch
            os._exit(1)

    # --- Modules that workers are to have from the start -------------------------------

    def _preload(self, control: Socket, preload: Preload) -> None:
        if self._preloader is None:
            from plait.backends.preloader import Preloader

            self._preloader = Preloader(self._become_child, self._start)
        self._preloader.ask(control, preload)
        self._set_signals()  # a module may have had its own ideas

    # --- What becomes of the workers ---------------------------------------------------

    def _reap(self, bell: Socket) -> None:
        with suppress(BlockingIOError):
            while bell.recv(4096):
                pass
        notes: list[tuple[_Child, Order]] = []
        with suppress(ChildProcessError):  # there is none left
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
                if not pid:
                    break
                worker = self._workers.get(pid)
                if self._preloader is not None and pid == self._preloader.trial_pid:
                    self._hear_trial(status)
                elif worker is not None:
                    peak = usage.ru_maxrss * MAXRSS_UNIT
                    notes.append((worker, self._note(pid, worker, status, peak)))
        if any(order.verb == b"ENDS" for _, order in notes):
            self._end_orphans()
        for worker, order in notes:
            self._tell(worker.control, order)

    def _hear_trial(self, status: int) -> None:
        """Go on with the modules once one was tried out; a trial that is stopped ends later."""
        assert self._preloader is not None
        if not (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
            self._end_orphans()
            self._preloader.hear_end(status)
            self._set_signals()

    def _note(self, pid: int, worker: _Child, status: int, peak: int) -> Order:
        if os.WIFSTOPPED(status):
            return Order(b"STOP", worker.number, os.WSTOPSIG(status))
        if os.WIFCONTINUED(status):
            return Order(b"CONT", worker.number)
        del self._workers[pid]
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return Order(b"ENDS", worker.number, os.waitstatus_to_exitcode(status), peak)

    def _end_orphans(self) -> None:
        """Kill what workers that ended have left behind, besides their groups.

        Its orphans are children of the server now, as are those that living workers have
        set free. Which is whose is told by the group, the session, or the mark that a
        worker puts into its environment; who hides them all is taken for its.
        """
        known: set[int] = set()
        while orphans := set(child_pids(self._pid)) - self._children - known:
            known |= orphans
            for orphan in orphans:
                if not self._is_of_a_living_worker(orphan):
                    kill_family(orphan)

    def _is_of_a_living_worker(self, pid: int) -> bool:
        return any(owner in self._workers for owner in (*process_groups(pid), worker_mark(pid)))

    def _tell(self, control: Socket, order: Order) -> None:
        """Tell a pool something; later, if nobody there listens now: others are not to wait."""
        self._untold.setdefault(control, deque()).append(order)
        self._tell_more(control)

    def _tell_more(self, control: Socket) -> None:
        orders = self._untold[control]
        try:
            while orders:
                send_order(control, orders[0], flags=DONT_WAIT)
                orders.popleft()
        except BlockingIOError:
            self._listen(control, READ_OR_WRITE)
            return
        except OSError:  # the pool is closed: nobody wants to know
            pass
        del self._untold[control]
        self._listen(control, selectors.EVENT_READ)

    def _listen(self, control: Socket, events: int) -> None:
        with suppress(KeyError, ValueError):  # it is closed
            if self._selector.get_key(control).events != events:
                self._selector.modify(control, events, self._obey)


def _become_interpreter(fds: list[int]) -> NoReturn:
    *kept, environ_fd = fds
    environ = object_in(environ_fd)
    for fd in kept:
        os.set_inheritable(fd, True)
    command = python_command("plait.backends.child_main.main_spawned", *kept)
    os.execve(command[0], command, environ)
