"""Every kind of shared data once, on threads and on processes: the lines are the same for both.

Run it: python examples/sharing.py
"""

import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import plait
from plait import shared


def together(backend: Any, *functions: Callable[[], Any]) -> list[Any]:
    """Call functions at the same time, each by a worker of its own; return their results."""
    with plait.Executor(max_workers=len(functions), backend=backend) as executor:
        futures: list[Future[Any]] = [executor.submit(function) for function in functions]
        return [future.result() for future in futures]


def lock(backend: Any) -> str:
    """Lock: one at a time."""
    balance, lock = shared.Value(int), shared.Lock("balance")

    def deposit(amount: int) -> None:
        with lock:
            balance.value += amount

    plait.map(deposit, range(1, 101), backend=backend, max_workers=4)
    return f"1 + 2 + ... + 100 = {balance.value}"


def rlock(backend: Any) -> str:
    """RLock: who has it can take it again, for a function that calls another which takes it."""
    accounts, lock = shared.Array(int, [100, 0]), shared.RLock("accounts")

    def pay(account: int, amount: int) -> None:
        with lock:
            accounts[account] += amount

    def move(amount: int) -> None:
        with lock:  # nobody sees the money on no account
            pay(0, -amount)
            pay(1, amount)

    plait.map(move, [10, 20, 30], backend=backend, max_workers=3)
    return f"100 and 0 became {accounts[0]} and {accounts[1]}"


def semaphore(backend: Any) -> str:
    """Semaphore: so many at a time."""
    seats, inside, most = shared.Semaphore(2), shared.Counter(), shared.Value(int)

    def visit(_: int) -> None:
        with seats:
            count = inside.add()
            with most:
                most.value = max(most.value, count)
            inside.add(-1)

    plait.map(visit, range(40), backend=backend, max_workers=4, chunksize=1)
    return f"40 visits, two at a time or fewer: {most.value <= 2}"


def condition(backend: Any) -> str:
    """Condition: wait until something is so; who changes it tells those who wait."""
    stock, changed = shared.Value(int), shared.Condition()

    def bake() -> None:
        for _ in range(3):
            with changed:
                stock.value += 1
                changed.notify_all()

    def buy() -> int:
        with changed:
            changed.wait_for(lambda: stock.value == 3)
            stock.value -= 2
            return stock.value

    left, _ = together(backend, buy, bake)
    return f"bought 2 of 3 when all were there, left: {left}"


def event(backend: Any) -> str:
    """Event: all wait for one thing, which happens once."""
    is_open, arrived = shared.Event(), shared.Counter()

    def enter() -> bool:
        arrived.add()
        is_open.wait()
        return is_open.is_set()

    def unlock() -> str:
        is_open.set()
        return "it is opened"

    *entered, opened = together(backend, enter, enter, unlock)
    return f"{opened}, and {sum(entered)} went in"


def barrier(backend: Any) -> str:
    """Barrier: nobody goes on before all are there."""
    arrived, barrier = shared.Counter(), shared.Barrier(3)

    def walk() -> int:
        arrived.add()
        barrier.wait()
        return arrived.value

    return f"each saw so many at the gate: {together(backend, walk, walk, walk)}"


def queue(backend: Any) -> str:
    """Queue: from those who have something to those who take it; it ends when it is shut down."""
    queue = shared.Queue(maxsize=10)

    def produce() -> None:
        for number in range(100):
            queue.put(number)
        queue.shutdown()

    def consume() -> int:
        return sum(queue)

    one, other, _ = together(backend, consume, consume, produce)
    return f"two consumers took 0 + 1 + ... + 99 = {one + other}"


def pipe(backend: Any) -> str:
    """Pipe: two ends; what one sends the other receives, both ways."""
    ours, theirs = shared.Pipe()

    def answer() -> None:
        theirs.send(theirs.recv().upper())

    def ask() -> Any:
        ours.send("hello")
        return ours.recv()

    return f"hello, {together(backend, ask, answer)[0]}"


def value(backend: Any) -> str:
    """Value: a number. What is more than one step is done under its lock."""
    best = shared.Value(float)

    def compare(number: float) -> None:
        with best:
            best.value = max(best.value, number)

    plait.map(compare, [2.5, 9.5, 4.0], backend=backend, max_workers=3)
    return f"the largest was {best.value}"


def counter(backend: Any) -> str:
    """Counter: a number that is counted up, without a lock to think of."""
    found = shared.Counter()

    def look(number: int) -> None:
        if number % 7 == 0:
            found.add()

    plait.map(look, range(1, 1001), backend=backend, max_workers=4)
    return f"{found.value} of 1,000 numbers can be divided by 7"


def array(backend: Any) -> str:
    """Array: numbers in memory that all have; view() is a numpy array of them."""
    squares = shared.Array(int, 10)

    def square(number: int) -> None:
        squares[number] = number**2

    plait.map(square, range(10), backend=backend, max_workers=4)
    return f"{list(squares)}"


def list_(backend: Any) -> str:
    """List: like a list, with any objects."""
    names: shared.List[str] = shared.List(["Ada"])

    plait.map(names.append, ["Grace", "Edsger"], backend=backend, max_workers=2)
    return f"{sorted(names)}"


def dict_(backend: Any) -> str:
    """Dict: like a dict. What is more than one step is done under its lock."""  # noqa: D401
    counts: shared.Dict[str, int] = shared.Dict()

    def count(word: str) -> None:
        with counts.lock:
            counts[word] = counts.get(word, 0) + 1

    plait.map(count, ["to", "be", "or", "not", "to", "be"], backend=backend, max_workers=3)
    return f"{dict(sorted(counts.items()))}"


WAYS = (
    lock, rlock, semaphore, condition, event, barrier, queue, pipe, value, counter, array, list_,
    dict_,
)  # fmt: skip

for way in WAYS:
    name, _, what = (way.__doc__ or "").partition(":")
    if name in sys.argv[1:] or len(sys.argv) == 1:
        print(f"{name}:{what}")
        for backend in ("threads", "processes"):
            print(f"  on {backend}: {way(backend)}")
