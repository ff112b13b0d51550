"""The process under test: runs the program, then the tests, in one interpreter. Its text is sent, it is never imported.

Nothing of it lies where a program finds it by a name: it has built-in names of its own, `__main__` is the program's
own module, functions of `os` that a program may replace are kept from before, and the events by which Python lets a
program see the frames, objects or memory of others are refused with a ValueError (the standard library takes that for
"no such frame"). Before each test the built-in names are what they were. A test passes where it ran to its end in the
process that began it. The talk with the watcher is described in `_watch`.
"""

from __future__ import annotations

import builtins
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_read, _write, _leave, _own_pid, _modules = os.read, os.write, os._exit, os.getpid, sys.modules
_known = dict(builtins.__dict__)
_flags_of, _name_of = type.__dict__["__flags__"].__get__, type.__dict__["__name__"].__get__
_bases_of, _names_in = type.__dict__["__mro__"].__get__, type.__dict__["__dict__"].__get__
#: flag of classes that are made by programs and libraries, in the interpreter's own terms
_HEAP = 1 << 9
_MODULE = "program"
#: a class that defines one of these can answer for its values, in a comparison or on the way there
_ANSWERS = frozenset(
    ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__sub__", "__rsub__", "__add__",
     "__radd__", "__abs__", "__round__", "__float__", "__int__", "__index__", "__getattribute__", "__class__")
)  # fmt: skip
_REFUSED = frozenset(
    ("sys._getframe", "sys._current_frames", "sys._current_exceptions", "sys.settrace", "sys.setprofile",
     "sys.addaudithook", "sys.monitoring.register_callback", "gc.get_objects", "gc.get_referrers", "gc.get_referents",
     "ctypes.dlopen", "ctypes.call_function", "ctypes.string_at", "ctypes.cdata", "ctypes.cdata/buffer")
)  # fmt: skip
_HIDDEN = frozenset(("tb_frame", "f_code", "gi_frame", "cr_frame", "ag_frame"))


def refuse(event: str, given: tuple[Any, ...]) -> None:
    """The audit hook: what would show the frames, objects or memory of others is a ValueError."""
    if event in _REFUSED or (event == "object.__getattr__" and given[1] in _HIDDEN):
        raise ValueError("not in a sandbox: " + event)


class Talk:
    """Frames to and from the watcher. A copy of the process that goes on by itself has nothing to say."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd, self.pid = read_fd, write_fd, _own_pid()

    def tell(self, kind: bytes, what: bytes = b"") -> None:
        """Send one frame."""
        if _own_pid() != self.pid:
            _leave(1)
        body = len(kind + what).to_bytes(4, "big") + kind + what
        while body:
            body = body[_write(self.write_fd, body) :]

    def hear(self) -> bytes:
        """Take one frame, and not a byte more."""
        return self._take(int.from_bytes(self._take(4), "big"))

    def _take(self, n: int) -> bytes:
        out = b""
        while len(out) < n:
            more = _read(self.read_fd, n - len(out))
            if not more:
                _leave(1)
            out += more
        return out


def of_program(kind: type) -> bool:
    """Whether a class was made by the program: it is not what its module, the program's aside, has by its name."""
    names = _names_in(kind)
    home, name = names.get("__module__"), _name_of(kind)
    home = _modules.get(home) if type(home) is str and home not in (_MODULE, "__main__") else None
    return bool(_flags_of(kind) & _HEAP) and (home is None or home.__dict__.get(name) is not kind)


def plain(value: Any) -> Any:
    """The value; AssertionError where it, or one in it, is of a class of the program that answers for itself."""
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        bases = _bases_of(type(one))
        for base in bases:
            if of_program(base) and not _ANSWERS.isdisjoint(_names_in(base)):
                raise AssertionError("a value of a class that answers comparisons itself: " + _name_of(base))
        for holder in (dict, list, tuple, set, frozenset):
            if holder in bases and id(one) not in seen:
                seen.add(id(one))
                waiting += holder.__iter__(one)
                waiting += dict.values(one) if holder is dict else ()
    return value


def calling(function: Any) -> Any:
    """The function with its results checked; a class as it is."""
    if type in _bases_of(type(function)):
        return function
    return lambda *given, **named: plain(function(*given, **named))


def attempt(text: bytes, name: str, space: dict[str, Any]) -> bytes | None:
    """Run some text with the true built-in names; what went wrong, if anything."""
    names = builtins.__dict__
    if len(names) != len(_known) or any(names.get(n, names) is not _known[n] for n in _known):
        names.clear()
        names.update(_known)
    try:
        exec(compile(text, name, "exec", dont_inherit=True), space)
    except BaseException as error:
        return said(error)
    return None


def said(error: BaseException) -> bytes:
    """An error in one line, which the program's own class may try to prevent."""
    try:
        return f"{_name_of(type(error))}: {error}"[:300].encode("utf-8", "replace")
    except BaseException:
        return b"an error that cannot be shown"


def run(read_fd: int, write_fd: int) -> NoReturn:
    """Be the process under test, until the watcher ends it."""
    talk, module = Talk(read_fd, write_fd), types.ModuleType(_MODULE)
    space: dict[str, Any] = {}
    add_hook = sys.addaudithook
    _modules[_MODULE] = _modules["__main__"] = module
    sys.argv, sys.orig_argv = [""], []
    os.environ.clear()
    for end in (read_fd, write_fd):
        os.set_inheritable(end, False)
    talk.tell(b"H")
    for name in ("<program>", "<set-up>"):
        text = talk.hear()
        if name == "<program>":
            add_hook(refuse)
        failed = attempt(text, name, module.__dict__)
        if failed is not None:
            talk.tell(b"F", failed)
            _leave(1)
        talk.tell(b"R")
    while True:
        text = talk.hear()
        space.update(module.__dict__)
        space.update({"__builtins__": dict(_known), "unified_plain": plain, "unified_calling": calling})
        for name in _known if text[:1] == b"1" else ():
            if name[0] != "_":
                space.pop(name, None)
        failed = attempt(text[1:], "<test>", space)
        token = talk.hear()  # not read before, so that it is nowhere in this process while the test runs
        talk.tell(b"T", token) if failed is None else talk.tell(b"F", failed)
