"""plait beside its peers: what is claimed about speed and memory, measured in one run.

    python -m benchmarks [--quick] [--claims latency,tiny] [--out DIR]

Every engine (plait, concurrent.futures, joblib, ...) lives in a process of its own, its *host*.
The command tells one host after the other to do the same work and to say how long it took, so
that no engine's threads, memory or hanging touches another's figures.

| to change | look into |
| --- | --- |
| what is measured, and its bar | `claims/`: one file for each claim |
| the engines; how each is opened and given work | `engines.py`; `adapters.py`, `pypi_adapters.py` |
| what a measurement in a host has to hand | `station.py` |
| the functions that engines are given | `tasks.py` |
| work of many kinds, and who is right for it; its functions | `workloads.py`; `chores.py` |
| the files and the server that it needs | `ground.py`; `slow_server.py` |
| the best setting of every way to do it | `tuning.py` |
| turns, ratios, bars | `pairs.py` (pure) |
| what a claim has to hand; sizes and rounds of the quick run | `bench.py` |
| hosts: started, told what to do, given up; their main loop | `hosts.py`; `host.py` |
| ends of processes and of all that they started | `processes.py` |
| the limits: bare processes that have nothing else to do | `bare.py` |
| what is read from /proc | `memory.py`, `machine.py` |
| what is written | `tables.py` (Markdown), `charts.py` (PNG), `__main__.py` (JSON, the command) |

Linux, for fork and /proc. Give it a quiet machine.
"""
