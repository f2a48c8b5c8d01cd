"""The ledger of a campaign: one SQLite file, append-only, that survives a kill at any moment.

Every step is one transaction, on the disk before it is acknowledged (``synchronous=FULL``). Rows are only
ever added: triggers refuse updates and deletes. The same row again is no change; another answer for
the same pair is refused. A *cell* is one line of work inside a campaign, such as one method with one seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "Issued", "Ledger", "LedgerError", "campaign_lock"]

#: Version of the file format; a newer one is refused.
FORMAT_VERSION = 1
_APPLICATION_ID = 0x44414C43  # "DALC": tells our files from other SQLite files
_BUSY_SECONDS = 60.0
#: What a damaged file makes sqlite3 raise; its own messages may quote bytes that are no text.
_BROKEN = (sqlite3.Error, UnicodeDecodeError)

_TABLES = {
    "settings": "name TEXT PRIMARY KEY, body TEXT NOT NULL",
    "batches": "cell TEXT NOT NULL, round INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (cell, round)",
    "issued": (
        "cell TEXT NOT NULL, position INTEGER NOT NULL, round INTEGER NOT NULL, "
        "conversation INTEGER NOT NULL, teacher INTEGER NOT NULL, gain REAL NOT NULL, "
        "swapped INTEGER NOT NULL CHECK (swapped IN (0, 1)), "
        "PRIMARY KEY (cell, position), UNIQUE (cell, conversation, teacher)"
    ),
    "answers": (
        "cell TEXT NOT NULL, conversation INTEGER NOT NULL, teacher INTEGER NOT NULL, "
        "label REAL NOT NULL CHECK (label BETWEEN 0 AND 1), "
        "PRIMARY KEY (cell, conversation, teacher), "
        "FOREIGN KEY (cell, conversation, teacher) REFERENCES issued (cell, conversation, teacher)"
    ),
    "withdrawn": (
        "cell TEXT NOT NULL, conversation INTEGER NOT NULL, teacher INTEGER NOT NULL, "
        "PRIMARY KEY (cell, conversation, teacher), "
        "FOREIGN KEY (cell, conversation, teacher) REFERENCES issued (cell, conversation, teacher)"
    ),
    "rounds": "cell TEXT NOT NULL, round INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (cell, round)",
    "finished": "cell TEXT PRIMARY KEY, body TEXT NOT NULL",
    "arrays": "name TEXT PRIMARY KEY, shape TEXT NOT NULL, body BLOB NOT NULL",
}


class LedgerError(ValueError):
    """The ledger cannot be used, or what should enter it contradicts what it holds."""


@dataclass(frozen=True)
class Issued:
    """Pairs issued in one cell, in order.

    Attributes
    ----------
    round, conversation, teacher : ndarray of int64, (k,)
    gain : ndarray of float64, (k,)
    swapped : ndarray of bool, (k,)
        Whether completion b is the one shown on the left.
    """

    round: NDArray[np.int64]
    conversation: NDArray[np.int64]
    teacher: NDArray[np.int64]
    gain: NDArray[np.float64]
    swapped: NDArray[np.bool_]


class Ledger:
    """One SQLite file, or one in memory.

    Parameters
    ----------
    path : str or path
        The file, made when it is absent; ":memory:" for none.
    must_exist : bool, default False
        Refuse an absent file instead of making it.

    Raises
    ------
    LedgerError
        Not a ledger, damaged, of a newer version, or not readable.

    Examples
    --------
    >>> with Ledger(":memory:") as ledger:
    ...     ledger.issue("main", 0, [3], [1], [0.5], [False], {})
    ...     ledger.answer("main", [(3, 1, 1.0)]), ledger.answer("main", [(3, 1, 1.0)])
    ((1, 0), (0, 0))
    """

    def __init__(self, path: str | os.PathLike[str], *, must_exist: bool = False) -> None:
        self.path = os.fspath(path)
        in_memory = self.path == ":memory:"
        if must_exist and not in_memory and not Path(self.path).is_file():
            raise LedgerError(f"{self.path}: no such campaign ledger")
        try:
            # A connection in autocommit mode: every transaction below is begun and ended by hand.
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot be opened ({error})") from None
        try:
            self._prepare()
        except _BROKEN as error:
            self.close()
            raise LedgerError(f"{self.path}: not a usable campaign ledger ({error})") from None
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------- the file

    def _prepare(self) -> None:
        run = self._connection.execute
        application = run("PRAGMA application_id").fetchone()[0]
        version = run("PRAGMA user_version").fetchone()[0]
        fresh = application == 0 and run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not fresh and application != _APPLICATION_ID:
            raise LedgerError(f"{self.path}: an SQLite file, but not a campaign ledger")
        if version > FORMAT_VERSION:
            raise LedgerError(
                f"{self.path}: written in format {version}, this version reads up to {FORMAT_VERSION}; "
                "install a newer dal-native"
            )
        # Where the file system cannot share memory between processes SQLite keeps its rollback journal.
        run("PRAGMA journal_mode=WAL").fetchone()
        run("PRAGMA synchronous=FULL")
        run("PRAGMA foreign_keys=ON")
        if fresh:
            self._create()
        found = run("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise LedgerError(f"{self.path}: the campaign ledger is damaged ({found})")

    def _create(self) -> None:
        strict = " STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
        with self._transaction() as run:
            if run("PRAGMA user_version").fetchone()[0] == FORMAT_VERSION:
                return  # another process was first
            for name, columns in _TABLES.items():
                run(f"CREATE TABLE {name} ({columns}){strict}")
                for verb in ("UPDATE", "DELETE"):
                    run(
                        f"CREATE TRIGGER {name}_no_{verb.lower()} BEFORE {verb} ON {name} "
                        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
                    )
            run(f"PRAGMA application_id={_APPLICATION_ID}")
            run(f"PRAGMA user_version={FORMAT_VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """All or nothing; the write lock is taken first, so that what was read stays true."""
        run = self._connection.execute
        try:
            run("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise LedgerError(f"{self.path}: in use by another process, or not writable ({error})") from None
        try:
            yield run
            run("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                run("ROLLBACK")
            if isinstance(error, _BROKEN):
                raise LedgerError(f"{self.path}: refused ({error})") from None
            raise

    def close(self) -> None:
        """Close the file; closing twice is no error."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------- adding

    def _add_once(self, table: str, key: Mapping[str, Any], body: Mapping[str, Any], what: str) -> bool:
        """Add a row unless the very same is there; another one under the same key is refused."""
        where = " AND ".join(f"{name} = ?" for name in key)
        with self._transaction() as run:
            row = run(f"SELECT {', '.join(body)} FROM {table} WHERE {where}", tuple(key.values())).fetchone()
            if row is None:
                names = [*key, *body]
                marks = ", ".join("?" * len(names))
                run(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",
                    (*key.values(), *body.values()),
                )
                return True
        if tuple(row) != tuple(body.values()):
            raise LedgerError(f"{self.path}: {what} is in the ledger already, with another content")
        return False

    def store(self, name: str, body: Any) -> None:
        """Store a setting once; the same again is no change, another content is refused."""
        self._add_once("settings", {"name": name}, {"body": _dumps(body)}, f"setting {name!r}")

    def store_array(self, name: str, array: NDArray[np.float64]) -> None:
        """Store a float64 array once, bit for bit."""
        values = np.ascontiguousarray(array, "<f8")
        body = {"shape": json.dumps(values.shape), "body": values.tobytes()}
        self._add_once("arrays", {"name": name}, body, f"array {name!r}")

    def issue(
        self,
        cell: str,
        round: int,
        conversation: Sequence[int] | NDArray[np.int64],
        teacher: Sequence[int] | NDArray[np.int64],
        gain: Sequence[float] | NDArray[np.float64],
        swapped: Sequence[bool] | NDArray[np.bool_],
        body: Mapping[str, Any],
    ) -> None:
        """Record a batch as issued, all of it or nothing.

        Raises
        ------
        LedgerError
            The round was issued before, or one of the pairs was.
        """
        with self._transaction() as run:
            start = run("SELECT count(*) FROM issued WHERE cell = ?", (cell,)).fetchone()[0]
            run("INSERT INTO batches VALUES (?, ?, ?)", (cell, int(round), _dumps(body)))
            rows = zip(conversation, teacher, gain, swapped, strict=True)
            for place, (i, j, g, s) in enumerate(rows, start):
                run(
                    "INSERT INTO issued VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (cell, place, int(round), int(i), int(j), float(g), int(s)),
                )

    def answer(
        self,
        cell: str,
        answers: Iterable[tuple[int, int, float]] = (),
        withdrawn: Iterable[tuple[int, int]] = (),
    ) -> tuple[int, int]:
        """Record answers, and pairs that nobody will answer: all or nothing, each only once.

        Parameters
        ----------
        cell : str
        answers : iterable of (conversation, teacher, label)
            Labels in [0, 1].
        withdrawn : iterable of (conversation, teacher)
            Given up for good.

        Returns
        -------
        answers, withdrawn : int
            How many of each were new.

        Raises
        ------
        LedgerError
            A pair that was never issued, has another answer, or is both answered and withdrawn.
        """
        with self._transaction() as run:
            new = sum(self._add_answer(run, (cell, int(i), int(j)), float(y)) for i, j, y in answers)
            gone = sum(self._add_withdrawal(run, (cell, int(i), int(j))) for i, j in withdrawn)
        return new, gone

    def _add_answer(self, run: Any, key: tuple[str, int, int], label: float) -> bool:
        _, i, j = key
        where = "cell = ? AND conversation = ? AND teacher = ?"
        old = run(f"SELECT label FROM answers WHERE {where}", key).fetchone()
        if old is not None:
            if old[0] != label:
                raise LedgerError(f"conversation {i} was answered {old[0]:g} by teacher {j}, now {label:g}")
            return False
        if self._has(run, "withdrawn", key):
            raise LedgerError(f"conversation {i} for teacher {j} was withdrawn")
        if not self._has(run, "issued", key):
            raise LedgerError(f"conversation {i} was never issued to teacher {j}")
        run("INSERT INTO answers VALUES (?, ?, ?, ?)", (*key, label))
        return True

    def _add_withdrawal(self, run: Any, key: tuple[str, int, int]) -> bool:
        _, i, j = key
        if self._has(run, "withdrawn", key):
            return False
        if self._has(run, "answers", key):
            raise LedgerError(f"conversation {i} was answered by teacher {j}, it cannot be withdrawn")
        if not self._has(run, "issued", key):
            raise LedgerError(f"conversation {i} was never issued to teacher {j}")
        run("INSERT INTO withdrawn VALUES (?, ?, ?)", key)
        return True

    @staticmethod
    def _has(run: Any, table: str, key: tuple[str, int, int]) -> bool:
        where = "cell = ? AND conversation = ? AND teacher = ?"
        return run(f"SELECT 1 FROM {table} WHERE {where}", key).fetchone() is not None

    def record_round(self, cell: str, round: int, body: Mapping[str, Any]) -> None:
        """Record what a round came to; once."""
        with self._transaction() as run:
            run("INSERT INTO rounds VALUES (?, ?, ?)", (cell, int(round), _dumps(body)))

    def finish(self, cell: str, body: Mapping[str, Any]) -> None:
        """Record the end of a cell; once."""
        with self._transaction() as run:
            run("INSERT INTO finished VALUES (?, ?)", (cell, _dumps(body)))

    # --------------------------------------------------------------------------------------------- reading

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except _BROKEN as error:
            raise LedgerError(f"{self.path}: cannot be read ({error})") from None

    def _loads(self, body: str) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise LedgerError(f"{self.path}: the campaign ledger is damaged ({error})") from None

    def stored(self, name: str) -> Any:
        """A setting, or None."""
        rows = self._rows("SELECT body FROM settings WHERE name = ?", name)
        return self._loads(rows[0][0]) if rows else None

    def array(self, name: str) -> NDArray[np.float64] | None:
        """A stored array, or None."""
        rows = self._rows("SELECT shape, body FROM arrays WHERE name = ?", name)
        if not rows:
            return None
        try:
            return np.frombuffer(rows[0][1], "<f8").reshape(json.loads(rows[0][0])).astype(np.float64)
        except (ValueError, TypeError, RecursionError) as error:
            raise LedgerError(f"{self.path}: array {name!r} is damaged ({error})") from None

    def issued(self, cell: str) -> Issued:
        """Every pair issued in this cell, in order."""
        rows = self._rows(
            "SELECT round, conversation, teacher, gain, swapped FROM issued WHERE cell = ? ORDER BY position",
            cell,
        )
        columns = list(zip(*rows, strict=True)) or [(), (), (), (), ()]
        return Issued(
            np.array(columns[0], np.int64),
            np.array(columns[1], np.int64),
            np.array(columns[2], np.int64),
            np.array(columns[3], np.float64),
            np.array(columns[4], bool),
        )

    def answers(self, cell: str) -> dict[tuple[int, int], float]:
        """(conversation, teacher) -> label."""
        rows = self._rows("SELECT conversation, teacher, label FROM answers WHERE cell = ?", cell)
        return {(i, j): label for i, j, label in rows}

    def withdrawn(self, cell: str) -> set[tuple[int, int]]:
        """Pairs given up."""
        rows = self._rows("SELECT conversation, teacher FROM withdrawn WHERE cell = ?", cell)
        return {(i, j) for i, j in rows}

    def batches(self, cell: str) -> dict[int, Any]:
        """Round -> what was recorded when it was issued."""
        rows = self._rows("SELECT round, body FROM batches WHERE cell = ? ORDER BY round", cell)
        return {k: self._loads(b) for k, b in rows}

    def rounds(self, cell: str) -> dict[int, Any]:
        """Round -> what it came to."""
        rows = self._rows("SELECT round, body FROM rounds WHERE cell = ? ORDER BY round", cell)
        return {k: self._loads(b) for k, b in rows}

    def finished(self) -> dict[str, Any]:
        """Cell -> how it ended, for those that did."""
        return {cell: self._loads(body) for cell, body in self._rows("SELECT cell, body FROM finished")}


def _dumps(body: Any) -> str:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, sort_keys=True)


@contextlib.contextmanager
def campaign_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder against a second process; the system lets go when this one ends, however it ends.

    Parameters
    ----------
    folder : str or path
        An existing folder, in which ``campaign.lock`` is made.

    Raises
    ------
    LedgerError
        Another process holds it, or the folder is not writable.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, campaign_lock(folder):
    ...     pass
    """
    path = os.path.join(os.fspath(folder), "campaign.lock")
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=0.0, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        if "locked" in str(error):
            raise LedgerError(f"{os.fspath(folder)}: another process is working in this folder") from None
        raise LedgerError(f"{os.fspath(folder)}: cannot be locked for writing ({error})") from None
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()
