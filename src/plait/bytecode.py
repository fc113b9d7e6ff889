"""Follow Python's stack through the bytecode of a function, to see what it changes.

Used by effects.py. Nothing is run: the stack holds what the code would have loaded (a
global, a captured variable, an attribute of one of them) or ``UNKNOWN``. Instructions that
do not matter, and those of a Python to come, are known by how far they move the stack.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from dis import Instruction
from types import CodeType, ModuleType
from typing import Any, NamedTuple, Protocol

from plait.mutables import NOTHING, UNKNOWN, Names, Value, can_store, is_apart, method_of, verb

__all__ = ["HANDLERS", "Frame", "Scope"]

# Nothing comes from here to the next instruction.
BREAKS = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"} | {
    name for name in dis.opmap if name.startswith(("JUMP_FORWARD", "JUMP_BACKWARD"))
}
# They take off what is on top, or nothing, and leave the rest as it is.
KEEPS = {"POP_TOP", "POP_ITER", "END_FOR", "STORE_NAME", "NOP", "NOT_TAKEN", "RESUME"} | {
    *("KW_NAMES", "EXTENDED_ARG", "COPY_FREE_VARS", "MAKE_CELL", "GET_ITER", *BREAKS),
    *(name for name in dis.opmap if name.startswith(("POP_JUMP", "JUMP_IF_"))),
}
JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
NTH_ITERATOR = 2 if sys.version_info >= (3, 15) else 1  # what FOR_ITER keeps above it
HAS_METHOD_FLAG = "LOAD_METHOD" not in dis.opmap  # in LOAD_ATTR, since Python 3.12


class Scope(NamedTuple):
    """What names mean in some code."""

    names: Names  # of variables: what they hold when the code begins
    captured: frozenset[str]  # those that live outside the function
    globals: dict[str, Any]
    depth: int  # of calls


class Listener(Protocol):
    """Hears what a Frame finds."""

    home: str  # the package of the function

    def note(self, text: str) -> None:
        """Keep a finding."""

    def follow(self, fn: object, depth: int, owner: Value | None = None) -> None:
        """Look into a function that is used, as a method of ``owner`` perhaps."""


class Frame:
    """The stack and the variables while one code object is read."""

    def __init__(self, listener: Listener, scope: Scope) -> None:
        self._listener = listener
        self._scope = scope
        self._names = dict(scope.names)
        self._stack: list[Value] = []
        self._operated = UNKNOWN  # what the last ``+=`` may have changed

    def read(self, code: CodeType) -> None:
        """Read the instructions one after the other."""
        waiting: dict[int, list[Value]] = {}  # the stack where a jump leads
        was_break = False
        for step in dis.get_instructions(code):
            if was_break:
                self._stack = waiting.get(step.offset, [])
            if step.opcode in JUMPS:
                waiting.setdefault(step.argval, self._after_jump(step))
            HANDLERS.get(step.opname, Frame.skip)(self, step)
            was_break = step.opname in BREAKS

    # --- The stack ---------------------------------------------------------------------------

    def _peek(self, nth: int) -> Value:
        return self._stack[-nth] if len(self._stack) >= nth else UNKNOWN

    def _pop(self, count: int = 1) -> None:
        if count:
            del self._stack[-count:]

    def _push(self, *values: Value) -> None:
        self._stack += values

    def _after_jump(self, step: Instruction) -> list[Value]:
        moved = dis.stack_effect(step.opcode, step.arg, jump=True)
        return [*self._stack, *[UNKNOWN] * moved] if moved >= 0 else self._stack[:moved]

    def skip(self, step: Instruction) -> None:
        """Move the stack, and forget what an instruction may have put there."""
        moved = dis.stack_effect(step.opcode, step.arg, jump=False)
        if moved > 0:
            self._push(*[UNKNOWN] * moved)
            return
        self._pop(-moved)
        if step.opname not in KEEPS and self._stack:
            self._stack[-1] = UNKNOWN

    def copy(self, step: Instruction) -> None:
        """Put the nth from above on top, too."""
        self._push(self._peek(step.argval))

    def swap(self, step: Instruction) -> None:
        """Exchange what is on top with the nth from above."""
        missing = step.argval - len(self._stack)
        self._stack[:0] = [UNKNOWN] * missing
        stack, nth = self._stack, step.argval
        stack[-1], stack[-nth] = stack[-nth], stack[-1]

    # --- Loading -----------------------------------------------------------------------------

    def load_name(self, step: Instruction) -> None:
        """Load one or two variables."""
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        self._push(*(self._names.get(name, UNKNOWN) for name in names))

    def load_global(self, step: Instruction) -> None:
        """Load a global; a function is looked into, for it will be called."""
        obj = self._scope.globals.get(step.argval, NOTHING)
        self._listener.follow(obj, self._scope.depth)
        if dis.stack_effect(step.opcode, step.arg) == 2:  # it will be called
            self._push(UNKNOWN)
        self._push(Value(obj, "global", step.argval))

    def load_attr(self, step: Instruction) -> None:
        """Load an attribute or a method."""
        owner = self._peek(1)
        self._pop()
        self._use(owner, step.argval)
        is_method = step.opname == "LOAD_METHOD" or (HAS_METHOD_FLAG and (step.arg or 0) & 1)
        self._push(*([UNKNOWN] * 2 if is_method else [owner.attribute(step.argval)]))

    def _use(self, owner: Value, name: str) -> None:
        """Note what getting a method means, for then it will be called."""
        if owner.obj is NOTHING or type(owner.obj) is ModuleType:
            return
        does = verb(owner.obj, name, self._listener.home)
        if does is not None:
            self._listener.note(f"{does} {owner}")
        elif not is_apart(owner.obj):
            method = method_of(type(owner.obj), name)
            self._listener.follow(method, self._scope.depth, owner)

    def load_element(self, step: Instruction) -> None:
        """Load ``x[key]``."""
        element = self._peek(2).element()
        self.skip(step)
        self._stack[-1:] = [element]

    def iterate(self, step: Instruction) -> None:  # noqa: ARG002  as all handlers have it
        """Load the next of ``for x in xs``: the iterator stays, and stands here for what it has."""
        owner = self._peek(NTH_ITERATOR)
        has_keys = issubclass(type(owner.obj), dict)
        self._push(UNKNOWN if has_keys else owner.element())

    # --- Storing -----------------------------------------------------------------------------

    def store_name(self, step: Instruction) -> None:
        """Store into one or two variables."""
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        for name in names:
            self._bind(name)

    def _bind(self, name: str) -> None:
        value = self._peek(1)
        if value is self._operated is not UNKNOWN:
            self._listener.note(f"changes {value}")
        self._operated = UNKNOWN
        self._names[name] = value
        self._pop()

    def store_and_load(self, step: Instruction) -> None:
        """Store into one variable and load another."""
        stored, loaded = step.argval
        self._bind(stored)
        self._push(self._names.get(loaded, UNKNOWN))

    def store_captured(self, step: Instruction) -> None:
        """Store into a variable that inner functions share, or that we share."""
        is_set = step.opname == "STORE_DEREF"
        if step.argval in self._scope.captured:
            does = "sets" if is_set else "deletes"
            self._listener.note(f"{does} the captured variable {step.argval}")
            self._pop(int(is_set))
        elif is_set:
            self._bind(step.argval)

    def store_global(self, step: Instruction) -> None:
        """Store into a global, or delete it."""
        does = "sets" if step.opname == "STORE_GLOBAL" else "deletes"
        self._listener.note(f"{does} the global variable {step.argval}")
        self._pop(int(does == "sets"))

    def store_attr(self, step: Instruction) -> None:
        """Store into an attribute, or delete it."""
        owner = self._peek(1)
        if owner.obj is not NOTHING and not is_apart(owner.obj):
            does = "sets" if step.opname == "STORE_ATTR" else "deletes"
            self._listener.note(f"{does} {owner.named(step.argval)}")
        self._pop(2 if step.opname == "STORE_ATTR" else 1)

    def store_element(self, step: Instruction) -> None:
        """Store into ``x[key]`` or ``x[a:b]``, or delete it."""
        owner = self._peek(3 if step.opname == "STORE_SLICE" else 2)
        if owner.obj is not NOTHING and can_store(owner.obj, self._listener.home):
            does = "deletes from" if step.opname == "DELETE_SUBSCR" else "stores into"
            self._listener.note(f"{does} {owner}")
        self._pop(-dis.stack_effect(step.opcode, step.arg))

    def operate(self, step: Instruction) -> None:
        """Look out for ``x += [1]`` of a local name; storing into others is noted anyway."""
        if step.argrepr == "[]":  # Python 3.14
            self.load_element(step)
            return
        owner = self._peek(2)
        self.skip(step)
        can_change = owner.obj is not NOTHING and can_store(owner.obj, self._listener.home)
        if step.argrepr.endswith("=") and can_change:
            self._stack[-1:] = [owner]
            self._operated = owner


HANDLERS: dict[str, Callable[[Frame, Instruction], None]] = {
    "COPY": Frame.copy,
    "SWAP": Frame.swap,
    **dict.fromkeys(("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW"), Frame.load_name),
    **dict.fromkeys(("LOAD_FAST_LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF"), Frame.load_name),
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW": Frame.load_name,
    "LOAD_GLOBAL": Frame.load_global,
    **dict.fromkeys(("LOAD_ATTR", "LOAD_METHOD"), Frame.load_attr),
    "BINARY_SUBSCR": Frame.load_element,
    "FOR_ITER": Frame.iterate,
    **dict.fromkeys(("STORE_FAST", "STORE_FAST_STORE_FAST"), Frame.store_name),
    "STORE_FAST_LOAD_FAST": Frame.store_and_load,
    **dict.fromkeys(("STORE_DEREF", "DELETE_DEREF"), Frame.store_captured),
    **dict.fromkeys(("STORE_GLOBAL", "DELETE_GLOBAL"), Frame.store_global),
    **dict.fromkeys(("STORE_ATTR", "DELETE_ATTR"), Frame.store_attr),
    **dict.fromkeys(("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"), Frame.store_element),
    "BINARY_OP": Frame.operate,
}
"""What is done for an instruction; all others move the stack, and no more is known of them."""
