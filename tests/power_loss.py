"""A disk that can lose power: records what SQLite writes and syncs, and gives the files as a power cut leaves them.

SQLite's own way to files (its VFS) is copied and put in front of it, with ctypes: writes, truncations, syncs and
deletions are noted and passed on. What was not synced may be lost, whole or in part, in any order.
"""

import _sqlite3
import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

OK = 0
POINTER, INT, BIG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


def _structure(name: str, head: list[tuple[str, type]], functions: str) -> type[ctypes.Structure]:
    fields = head + [(function, POINTER) for function in functions.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Methods = _structure(
    "Methods",
    [("version", INT)],
    "close read write truncate sync size lock unlock reserved control sector device map shm_lock barrier unmap"
    " fetch unfetch",
)
Vfs = _structure(
    "Vfs",
    [("version", INT), ("file_size", INT), ("longest", INT), ("following", POINTER), ("name", ctypes.c_char_p)],
    "data open delete access full dlopen dlerror dlsym dlclose random sleep time error time64 set get next",
)
# Names stay pointers: SQLite keeps them, and reads more behind their ends.
OPEN = ctypes.CFUNCTYPE(INT, POINTER, POINTER, POINTER, INT, POINTER)
DELETE = ctypes.CFUNCTYPE(INT, POINTER, POINTER, INT)
CLOSE = ctypes.CFUNCTYPE(INT, POINTER)
WRITE = ctypes.CFUNCTYPE(INT, POINTER, POINTER, INT, BIG)
TRUNCATE = ctypes.CFUNCTYPE(INT, POINTER, BIG)
SYNC = ctypes.CFUNCTYPE(INT, POINTER, INT)


def library() -> ctypes.CDLL | None:
    """Return the SQLite that Python uses, None where its functions cannot be reached (it is built in)."""
    try:
        sqlite = ctypes.CDLL(_sqlite3.__file__)
        sqlite.sqlite3_vfs_find.restype = POINTER
    except (AttributeError, OSError):
        return None
    return sqlite


@dataclass
class Recorder:
    """Events in order: (what, file, ...). Others may append to `events` too."""

    events: list[tuple] = field(default_factory=list)
    _open: dict[int, tuple[str, Methods]] = field(default_factory=dict)
    _kept: list = field(default_factory=list)  # what C points to

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record all files that SQLite opens inside."""
        sqlite = library()
        assert sqlite is not None
        first = Vfs.from_address(sqlite.sqlite3_vfs_find(None))
        own = Vfs.from_buffer_copy(first)
        own.name, own.following = b"power-loss", None
        opened, deleted = OPEN(first.open), DELETE(first.delete)

        def on_open(vfs, name, file, flags, out):
            code = opened(vfs, name, file, flags, out)
            if code == OK and name:
                self._watch(file, ctypes.string_at(name).decode())
            return code

        def on_delete(vfs, name, sync):
            self.events.append(("delete", ctypes.string_at(name).decode()))
            return deleted(vfs, name, sync)

        callbacks = OPEN(on_open), DELETE(on_delete)
        own.open, own.delete = (ctypes.cast(callback, POINTER) for callback in callbacks)
        self._kept += [own, callbacks]
        sqlite.sqlite3_vfs_register(ctypes.byref(own), 1)
        try:
            yield
        finally:
            sqlite.sqlite3_vfs_unregister(ctypes.byref(own))

    def _watch(self, file: int, name: str) -> None:
        slot = POINTER.from_address(file)
        original = Methods.from_address(slot.value)
        methods = Methods.from_buffer_copy(original)
        close, write = CLOSE(original.close), WRITE(original.write)
        truncate, sync = TRUNCATE(original.truncate), SYNC(original.sync)

        def on_write(file, data, count, offset):
            self.events.append(("write", name, offset, ctypes.string_at(data, count)))
            return write(file, data, count, offset)

        def on_truncate(file, size):
            self.events.append(("truncate", name, size))
            return truncate(file, size)

        def on_sync(file, flags):
            code = sync(file, flags)
            self.events.append(("sync", name))
            return code

        callbacks = CLOSE(close), WRITE(on_write), TRUNCATE(on_truncate), SYNC(on_sync)
        _, methods.write, methods.truncate, methods.sync = (ctypes.cast(callback, POINTER) for callback in callbacks)
        self._kept += [methods, callbacks, close]
        slot.value = ctypes.addressof(methods)


@dataclass
class File:
    """What of a file is on the disk for sure, and what was written since."""

    synced: bytes = b""
    pending: list[tuple] = field(default_factory=list)

    def after(self, changes: list[tuple]) -> bytes:
        data = bytearray(self.synced)
        for kind, *change in changes:
            if kind == "truncate":
                del data[change[0] :]
                continue
            offset, written = change
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(written)] = written
        return bytes(data)


class Disk:
    """The files as events leave them."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}

    def take(self, event: tuple) -> None:
        kind, name, *change = event
        if kind == "delete":
            self.files.pop(name, None)
            return
        file = self.files.setdefault(name, File())
        if kind == "sync":
            file.synced, file.pending = file.after(file.pending), []
        else:
            file.pending.append((kind, *change))

    def after_power_cut(self, way: str, chance: random.Random) -> dict[str, bytes]:
        """Return the files' contents where all that was not synced is lost, some of it, or none (a killed process)."""
        found = {}
        for name, file in self.files.items():
            pending = list(file.pending)
            if way == "lose":
                pending = []
            elif way == "some":
                pending = [change for change in pending if chance.random() < 0.5]
            found[name] = file.after(pending)
        return found


def write_files(contents: dict[str, bytes], folder: Path) -> None:
    """Write the gallery's files of a power cut into a folder, under their own names."""
    for name, content in contents.items():
        if not name.endswith((".lock", "-shm")):
            (folder / Path(name).name).write_bytes(content)
