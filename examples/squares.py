"""Squares on processes: map() returns the values, run() also says who computed each.

Run it: python examples/squares.py
"""

import os
from collections import defaultdict

import plait


def square(n: int) -> int:
    return n * n


numbers = range(1, 11)

# The function lives in this script, and no `if __name__ == "__main__"` is needed:
# workers get the function itself and never run the script again.
print("squares:", plait.map(square, numbers, backend="processes"))

# run() hands out an Outcome for each task as it is done. With chunksize=1 every number
# travels alone; by default plait sends such short tasks together.
by_pid: defaultdict[int, list[int]] = defaultdict(list)
with plait.run(square, numbers, backend="processes", chunksize=1) as run:
    for outcome in run:
        by_pid[outcome.pid].append(outcome.value)

print(f"this process is {os.getpid()}")
for pid, squares in sorted(by_pid.items()):
    print(f"worker {pid} computed {squares}")
