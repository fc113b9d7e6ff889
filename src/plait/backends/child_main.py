"""A worker process from its first line to its last: read messages, run chunks, report.

Started by backends/server.py (forked, or as a fresh interpreter) or by backends/child.py;
the socket, the status page and the pipes were made by the parent and handed over.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from contextlib import closing, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NoReturn

from plait import blas, enclosed, wire
from plait.backends.child_end import end_in_peace
from plait.backends.child_streams import Streams, buffer_lines
from plait.backends.child_voice import Voice, keep_last_words
from plait.backends.kinship import die_with_parent
from plait.backends.messages import (
    CANCEL_WORDS,
    CANCELLED,
    CONDEMNED,
    NUMBERS,
    RUNNING,
    STARTED,
    TAKEN,
    TOGETHER,
    Forget,
    Learn,
    Ready,
    Released,
    Results,
    Setup,
    StartFailed,
    StatusPage,
    Work,
    decode,
    encode,
)
from plait.bare import Socket, signal, take_socket
from plait.channel import Receiver, Sender
from plait.errors import NotPicklable
from plait.foreign import Ended, attempt
from plait.host import WORKER_MARK, QueueClock, monotonic
from plait.running import begin_task, begin_tasks, set_task
from plait.segments import SEGMENT_BYTES, SegmentStore, SegmentView
from plait.tasks import Call, Stretch
from plait.wire_errors import pack_error
from plait.worker import FLUSH_S, enter_worker, run_apart, run_one, run_together, take_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plait.segments import Segment

WORK, RESULTS = NUMBERS[Work], NUMBERS[Results]
ALONE = wire.PLAIN - wire.SIZED
"""Types of values that can be sent as they are without a look at them."""

# Results are sent at the end of a chunk, and in a longer one this often.
SEND_S = 0.05

__all__ = ["main", "main_spawned"]

# Modules with random numbers of their own, and a function "seed".
SEEDED = ("random", "numpy.random", "torch")


def main(sock_fd: int, page_fd: int, items_fd: int, results_fd: int, *output_fds: int) -> None:
    """Be a worker until the parent closes the channel; does not return."""
    status = 1
    streams = Streams()
    try:
        if output_fds:
            streams.take(*output_fds)
        with closing(take_socket(sock_fd)) as sock:
            pid = os.getpid()
            # The parent is gone, or wants no more.
            with suppress(EOFError, OSError, _Condemned):
                _Worker(sock, page_fd, items_fd, results_fd, streams).serve()
            if os.getpid() != pid:  # a copy that a task forked
                _leave(0, streams)
            with suppress(ValueError):  # a copy that a thread forked
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end_in_peace()
        status = 0
    except OSError:  # the parent is gone
        status = 0
    finally:
        _leave(status, streams)


def main_spawned(*fds: int) -> None:
    """Be a worker in a fresh interpreter."""
    die_with_parent()
    buffer_lines()
    main(*fds)


def _leave_it_to_the_parent(signum: int, frame: object) -> None:
    """Ignore Ctrl-C; unlike SIG_IGN this is not passed on to programs that a task starts."""


def _leave(status: int, streams: Streams) -> NoReturn:
    """End this process, without waiting for threads that a task left, or for its children."""
    with suppress(ValueError):  # not in the main thread, of a copy that a thread forked
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    streams.flush_all()
    os._exit(status)


def _set_environ(environ: dict[str, str]) -> None:
    """Make this the environment; most of it is so already, as the server has it from the parent."""
    for name in os.environ.keys() - environ.keys():
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _reseed() -> None:
    """Seed the random numbers of what was loaded before the fork: workers are not to share them."""
    for name in SEEDED:
        module = sys.modules.get(name)
        if module is not None:
            module.seed()


class _Condemned(Ended):
    """Raised in a task that is to end, so that its ``finally`` clauses run; then it leaves."""


def _have_gevent_raise_it() -> None:
    """Have gevent raise it in the task that waits, if it comes up amid gevent's own loop."""
    gevent: Any = sys.modules.get("gevent.hub")
    if gevent is not None:
        gevent.Hub.SYSTEM_ERROR = (*gevent.Hub.SYSTEM_ERROR, _Condemned)
        gevent.Hub.NOT_ERROR = (*gevent.Hub.NOT_ERROR, _Condemned)  # and not print it


class _Worker:
    """The state of a worker: its channel and the functions that it knows."""

    def __init__(
        self, sock: Socket, page_fd: int, items_fd: int, results_fd: int, streams: Streams
    ) -> None:
        self._streams = streams
        self._pid = os.getpid()
        self._receiver = Receiver(sock)
        self._sender = Sender(sock)
        self._page = StatusPage(page_fd)
        self._view = SegmentView(items_fd)
        self._results_fd = results_fd
        self._place: Callable[[pickle.PickleBuffer], Segment | None] | None = None
        self._unopened: dict[int, list[Segment]] = {}  # of functions that were not loaded yet
        self._voice: Voice
        self._known: dict[int, Learn | Call] = {}
        self._variables: dict[int, list[Any]] = {}  # by key: pairs of a variable and its value
        self._queue_clock = QueueClock()
        self._unsent: list[Results] = []
        self._enclosed: set[Any] = set()  # shared memory in what was sealed and is not sent yet
        self._sent: deque[set[Any]] = deque()  # the same, sent, but the parent may not have it yet
        self._sent_ever = 0
        self._sent_at = 0.0
        self._first = 0  # the index of the first task of the chunk that runs
        enter_worker()
        _reseed()
        signal.signal(signal.SIGINT, _leave_it_to_the_parent)
        signal.signal(signal.SIGTERM, self._end_task)
        if page_fd >= 0:
            keep_last_words(page_fd, signal.SIGTERM)

    def serve(self) -> None:
        if not self._set_up(decode(self._receiver.wait())):
            return
        try:
            self._work_on()
        except _Condemned:
            self._stay_until_taken()
            raise

    def _work_on(self) -> NoReturn:
        while True:
            fields = self._receiver.wait()
            if self._sent:
                self._let_go_of_taken()
            if fields[0] == WORK and self._work_alone(fields):
                del fields
                continue
            message = decode(fields)
            del fields
            if isinstance(message, Work):
                self._work(message)
            elif isinstance(message, Learn):
                self._known[message.key] = message
                self._unopened[message.key] = wire.segments_in(message.fn)
            elif isinstance(message, Forget):
                self._forget(message.key)
            del message  # an idle worker keeps no item alive

    def _forget(self, key: int) -> None:
        self._known.pop(key, None)
        self._variables.pop(key, None)
        for segment in self._unopened.pop(key, ()):
            self._view.drop(segment)
        if self._view.released:
            self._sender.send(encode(Released(list(self._take_released()))))

    def _take_released(self) -> set[int]:
        """Return the segments that are not needed any more.

        A function that could not be loaded will be tried again, and needs its own.
        """
        needed = {offset for segments in self._unopened.values() for offset, _ in segments}
        return set(self._view.take_released()) - needed

    def _end_task(self, signum: int, frame: object) -> None:  # noqa: ARG002
        """Hear SIGTERM: from the parent it ends the running task; from others, this process."""
        if os.getpid() == self._pid and self._page.is_condemned:
            _have_gevent_raise_it()
            raise _Condemned
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _set_up(self, setup: Setup) -> bool:
        _set_environ({**setup.environ, WORKER_MARK: str(self._pid)})
        self._receiver.may_spin = not setup.is_crowd
        blas.follow_environment()  # what was preloaded has not seen it
        sys.argv[:] = setup.argv
        if self._results_fd >= 0:
            self._store = SegmentStore(self._results_fd, setup.workers)
            self._place = self._lay_down
        take_name(setup.worker)
        self._voice = Voice(setup.worker, self._sender, self._running_task)
        try:
            setup.context.adopt()
            self._voice.adopt(setup.context.levels)
            self._streams.adopt(setup.context.texts)
            if setup.initializer is not None:
                wire.load(setup.initializer)()
                self._streams.keep()
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent must know
            self._leave_if_not_wanted()
            self._streams.flush()
            self._sender.send(encode(StartFailed(pack_error(error))))
            return False
        self._leave_if_not_wanted()
        self._streams.flush()
        self._sender.send(encode(Ready()))
        return True

    def _running_task(self) -> int | None:
        seq, place = self._page.running()
        return self._first + place if seq and place != TOGETHER else None

    def _leave_if_copy(self) -> None:
        """End here if this is a copy that a task forked.

        A task that forks returns twice. The copy has the channel and the status page of
        its parent in hand, and must not touch them.
        """
        if os.getpid() != self._pid:
            _leave(0, self._streams)

    def _leave_if_not_wanted(self) -> None:
        """End here if the parent wants no more, or if this is a copy that a task forked."""
        self._leave_if_copy()
        if self._page.is_condemned:
            raise _Condemned

    def _call(self, key: int) -> Call:
        """Return a function by key, loaded when it is first needed."""
        known = self._known[key]
        if isinstance(known, Learn):
            known.context.adopt()
            self._voice.adopt(known.context.levels)
            self._streams.adopt(known.context.texts)
            for packed in known.variables:
                pair = attempt(wire.load, packed)[0]
                if pair is not None:  # else of a class that is not to be found here
                    variable, value = pair
                    variable.set(value)
                    self._variables.setdefault(key, []).append((variable, value))
            known = self._known[key] = Call(wire.load(known.fn, self._view), known.style)
            self._unopened.pop(key, None)
        return known

    def _lay_down(self, buffer: pickle.PickleBuffer) -> Segment | None:
        raw = buffer.raw()
        return self._store.place(raw) if raw.nbytes >= SEGMENT_BYTES else None

    def _seal(self, value: Any) -> Any:
        if type(value) in ALONE:
            return value
        return self._noting(wire.seal, value, "result", self._place)

    def _noting(self, pack: Callable[..., Any], *args: Any) -> Any:
        """Pickle something, and note what is shared in it."""
        enclosed.noted = self._enclosed
        try:
            return pack(*args)
        finally:
            enclosed.noted = None

    def _with_places(self, results: Results) -> Results:
        """Add where what is shared in results is, and keep that until the parent has it, too."""
        self._let_go_of_taken()
        regions, self._enclosed = self._enclosed, set()
        self._sent.append(regions)
        self._sent_ever += 1
        return results._replace(places=tuple(tuple(region.place) for region in regions))

    def _let_go_of_taken(self) -> None:
        """Let go of what was shared in those results of which the parent has taken it over."""
        while len(self._sent) > self._sent_ever - self._page.words[TAKEN]:
            self._sent.popleft()

    def _stay_until_taken(self) -> None:
        """Stay until the parent has what it was sent; who condemned us kills us if that lasts."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._let_go_of_taken()
        while self._sent:
            self._receiver.wait()
            self._let_go_of_taken()

    def _unseal(self, sealed: Any) -> Any:
        try:
            return wire.unseal(sealed, self._view)
        except (Exception, Ended):  # the task's, as what the function raises
            raise
        except BaseException as error:
            # SystemExit, for example, would end a program in which no task has asked for that.
            raise NotPicklable.on_arrival("item", error) from error

    def _work_alone(self, fields: tuple[Any, ...]) -> bool:
        """Do all that ``_work`` does for one task that is nothing special; False: do it there.

        Its item is plain, and its function was loaded before. All in one function, and with no
        message made into its class: where 128 workers share the caches of two CPUs nothing of
        one is in them when its next task comes, and each function that is entered on the way
        takes a microsecond or two (docs/design.md). The steps are those of StatusPage.begin,
        run_one and _report, in their order.
        """
        _, seq, key, first, together, items, released = fields
        call, words = self._known[key], self._page.words
        if (
            (together or released or len(items) != 1 or type(items[0]) is tuple)
            or (type(call) is not Call or call.style == "star" or key in self._variables)
            or self._view.released
        ):
            return False
        self._leave_if_copy()
        self._first = first
        before = words[RUNNING]
        set_task(first + 1)  # as begin_task
        self._page.clock[STARTED] = started = monotonic()
        words[RUNNING] = seq << 32
        # Both looks come after the note, as in StatusPage.begin, and for its reasons.
        if words[CONDEMNED] == before + 1 or words[CANCELLED + seq % CANCEL_WORDS] == seq:
            words[RUNNING] = before
            return False
        try:
            value = copy_context().run(call.fn, items[0])
        except BaseException as error:  # noqa: BLE001  see worker.CATCH_ALL
            self._report_alone(seq, None, {0: error}, started)
            return True
        if type(value) not in ALONE:
            self._report_alone(seq, value, {}, started)
            return True
        times = [(started, monotonic() - started)]
        if os.getpid() != self._pid or words[CONDEMNED] == words[RUNNING] + 1:
            self._leave_if_not_wanted()
        queued_s = self._queue_clock.read_since_last()
        results: tuple[Any, ...]
        results = (RESULTS, seq, 0, [value], True, {}, times, True, queued_s, False, (), (), ())
        self._streams.flush()
        self._sender.send_small(results)
        self._streams.mend()
        return True

    def _report_alone(
        self, seq: int, value: Any, errors: dict[int, BaseException], started: float
    ) -> None:
        """Report a task that failed, or whose value is to be sealed."""
        try:
            value = self._seal(value)
        except BaseException as error:  # noqa: BLE001  it may run code of the user's
            value, errors[0] = None, error
        times = [(started, monotonic() - started)]
        self._leave_if_not_wanted()
        self._report(seq, Stretch([value], errors, times), is_plain=type(value) is not tuple)
        self._streams.mend()

    def _work(self, work: Work) -> None:
        if work.released:
            for offset in work.released:
                self._store.release(offset)
            self._store.trim()
        self._sent_at = monotonic()
        self._first = work.first
        # What a task sets in its context is not seen by other chunks.
        copy_context().run(self._run, work)
        self._streams.mend()

    def _run(self, work: Work) -> None:
        """Run a chunk; its tasks see the context variables of who asked for them."""
        for variable, value in self._variables.get(work.key, ()):
            variable.set(value)
        if work.together:
            self._work_together(work)
        elif len(work.items) == 1:
            self._work_one(work)
        else:
            self._work_apart(work)

    def _work_together(self, work: Work) -> None:
        if not self._begin(work.seq, TOGETHER):
            self._report(work.seq, Stretch([], {}, []))
            return
        try:
            call, items = self._call(work.key), self._unseal(work.items)
        except BaseException:  # noqa: BLE001  apart, each task will tell its own
            self._report(work.seq, Stretch([], {}, []), unread=True)
            return
        begin_tasks(work.first, len(items))
        stretch = run_together(call, items)
        self._leave_if_not_wanted()
        is_plain = wire.PLAIN.issuperset(map(type, stretch.values))
        if not is_plain:
            self._seal_all(stretch)
        del items
        self._report(work.seq, stretch, is_plain=is_plain, segments=wire.segments_in(work.items))

    def _begin(self, seq: int, place: int) -> bool:
        """Note what is run next; False if it is not wanted."""
        self._leave_if_copy()
        is_wanted = self._page.begin(seq, place)
        if not is_wanted and not self._page.running()[0]:
            raise _Condemned
        return is_wanted

    def _work_one(self, work: Work) -> None:
        """Run a chunk of a single task: as apart, in fewer steps."""
        (sealed,) = work.items
        if not self._begin(work.seq, 0):
            self._report(work.seq, Stretch([], {}, []))
            return
        begin_task(work.first)
        value, error, times = run_one(self._lazy_call(work), sealed, self._unseal, self._seal)
        self._leave_if_not_wanted()
        errors = {} if error is None else {0: error}
        is_plain = type(value) is not tuple
        segments = wire.segments_in(sealed) if type(sealed) is tuple else ()
        stretch = Stretch([value], errors, [times])
        del error
        self._report(work.seq, stretch, is_plain=is_plain, segments=segments)

    def _work_apart(self, work: Work) -> None:
        def begin(place: int) -> bool:
            begin_task(work.first + place)
            return self._begin(work.seq, place)

        place = 0
        flush_s = FLUSH_S if self._page.is_shared else 0.0
        for stretch in run_apart(
            self._lazy_call(work),
            work.items,
            load=self._unseal,
            dump=self._seal,
            begin=begin,
            flush_s=flush_s,
        ):
            if self._page.is_condemned:
                stretch = _without_last(stretch)  # what ended it is no result
            is_plain = tuple not in set(map(type, stretch.values))
            segments = []
            if stretch.is_last:
                segments = [one for item in work.items for one in wire.segments_in(item)]
            self._report(work.seq, stretch, place, is_plain=is_plain, segments=segments)
            place += len(stretch.values)
            self._leave_if_not_wanted()

    def _lazy_call(self, work: Work) -> Call:
        """Return the function; if it cannot be loaded, one that raises that for each task.

        Loading runs the user's imports, so it happens inside the first task: what goes
        wrong there, a crash too, is then a task's error like any other. Only its time is
        not the task's: a limit would end each worker amid the imports.
        """
        known = self._known[work.key]
        if isinstance(known, Call):
            return known

        def load_and_call(*args: Any) -> Any:
            if isinstance(self._known[work.key], Learn):
                self._page.pause_clock()
                self._call(work.key)
                self._page.restart_clock()
            return self._call(work.key).fn(*args)

        return Call(load_and_call, known.style)

    def _report(
        self,
        seq: int,
        stretch: Stretch,
        place: int = 0,
        *,
        is_plain: bool = True,
        unread: bool = False,
        segments: Sequence[Segment] = (),
    ) -> None:
        """Send results, or keep them in the box to be sent with the next ones.

        Each message wakes the parent, which costs more than a task of a millisecond is
        worth: so a chunk that is over soon sends one.
        """
        self._leave_if_copy()
        self._streams.flush()
        values, errors, times, is_last, _ = stretch
        packed = {offset: self._noting(pack_error, error) for offset, error in errors.items()}
        errors.clear()  # an error refers to the items of its task
        queued_s = self._queue_clock.read_since_last()
        results = Results(seq, place, values, is_plain, packed, times, is_last, queued_s, unread)
        if self._enclosed:
            results = self._with_places(results)
        # What is shared would go with us; what is in the box stays.
        is_due = is_last or bool(results.places) or monotonic() - self._sent_at >= SEND_S
        if not is_due and self._keep(results):
            self._unsent.append(results)
            return
        if self._unsent:
            results = _merged([*self._unsent, results])
        if segments or self._view.released:
            results = self._with_segments(results, segments)
        self._sender.send(encode(results))
        self._sent_at = monotonic()
        if self._unsent:
            self._page.empty()
            self._unsent = []

    def _with_segments(self, results: Results, segments: Sequence[Segment]) -> Results:
        """Add which segments of the finished chunk are still in use, and which others are not."""
        own = {offset for offset, _ in segments}
        held = tuple(offset for offset in own if self._view.is_held(offset))
        released = tuple(self._take_released() - own)
        return results._replace(held=held, released=released)

    def _seal_all(self, stretch: Stretch) -> None:
        """Seal the values of tasks that ran together; one that cannot be is that task's error."""
        for place, value in enumerate(stretch.values):
            try:
                stretch.values[place] = self._seal(value)
            except Ended:
                raise
            except BaseException as error:  # noqa: BLE001  it may run code of the user's
                stretch.values[place] = None
                stretch.errors[place] = error

    def _keep(self, results: Results) -> bool:
        is_large = any(type(value) is tuple and value[1] for value in results.values)
        return not is_large and self._page.keep(pickle.dumps(tuple(results), wire.PROTOCOL))


def _without_last(stretch: Stretch) -> Stretch:
    values, errors, times, *_ = stretch
    errors.pop(len(values) - 1, None)
    return Stretch(values[:-1], errors, times[:-1], is_last=False)


def _merged(parts: list[Results]) -> Results:
    """Join results that follow each other in a chunk: the parent has less to do with one."""
    first, last = parts[0], parts[-1]
    errors = {
        part.place - first.place + offset: error
        for part in parts
        for offset, error in part.errors.items()
    }
    return last._replace(
        place=first.place,
        values=[value for part in parts for value in part.values],
        is_plain=all(part.is_plain for part in parts),
        errors=errors,
        times=[times for part in parts for times in part.times],
        queued_s=sum(part.queued_s for part in parts),
    )
