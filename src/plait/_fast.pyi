from types import TracebackType

def set_task(word: int, /) -> None: ...
def get_task() -> int: ...

class LockCalls:
    def _bind(
        self,
        mutex: int,
        words: int,
        depth: int,
        once: int,
        sites: dict[int, int],
        memory: object,
        /,
    ) -> None: ...
    def acquire(self, blocking: bool = True, timeout: float = -1.0) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
