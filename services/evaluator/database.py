"""Runs and their state in SQL: SQLite by default, PostgreSQL by URL. Results lie in files, never here."""

import time
import uuid
from pathlib import Path

from google.protobuf import json_format
from sqlalchemy import BigInteger, String, Text, create_engine, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from servox.errors import BadSetting, NotFound, Unavailable
from servox.v1 import common_pb2, evaluator_pb2


class _Table(DeclarativeBase):
    pass


class _Row(_Table):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    spec_json: Mapped[str] = mapped_column(Text)
    bundle_json: Mapped[str] = mapped_column(Text, default="{}")
    state: Mapped[int] = mapped_column()
    error: Mapped[str] = mapped_column(Text, default="")
    report: Mapped[str] = mapped_column(Text, default="")
    started_unix_ms: Mapped[int] = mapped_column(BigInteger)
    ended_unix_ms: Mapped[int] = mapped_column(BigInteger, default=0)


class Database:
    """The table of runs.

    Args:
        url: SQLAlchemy URL.

    Raises:
        BadSetting: not a URL, or no driver for it.
        Unavailable: the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._engine = create_engine(url)
            _Table.metadata.create_all(self._engine)
        except (ArgumentError, ModuleNotFoundError) as error:
            raise BadSetting(f"database = {url!r}: {error}; give a URL such as sqlite:///evaluator.db") from None
        except SQLAlchemyError as error:
            raise Unavailable(
                f"database {url}: {error.__class__.__name__}; is it up, and may we write there?"
            ) from None
        self._session = sessionmaker(self._engine)

    def create(self, spec: evaluator_pb2.RunSpec) -> evaluator_pb2.Run:
        """A new run, running from now."""
        row = _Row(
            id=uuid.uuid4().hex[:12],
            spec_json=json_format.MessageToJson(spec),
            state=int(evaluator_pb2.RUN_STATE_RUNNING),
            started_unix_ms=_now_ms(),
        )
        with self._session.begin() as session:
            session.add(row)
            session.flush()
            return _to_run(row)

    def end(self, run_id: str, state: evaluator_pb2.RunState, *, error: str = "", report: str = "") -> None:
        """Records how a run ended."""
        with self._session.begin() as session:
            row = _get(session, run_id)
            row.state, row.error, row.report, row.ended_unix_ms = int(state), error, report, _now_ms()

    def set_bundle(self, run_id: str, bundle: common_pb2.Bundle) -> None:
        """Records whose embeddings a run uses."""
        with self._session.begin() as session:
            _get(session, run_id).bundle_json = json_format.MessageToJson(bundle)

    def get(self, run_id: str) -> evaluator_pb2.Run:
        """One run.

        Raises:
            NotFound: there is no such run.
        """
        with self._session() as session:
            return _to_run(_get(session, run_id))

    def all(self) -> list[evaluator_pb2.Run]:
        """Every run, newest first."""
        with self._session() as session:
            return [_to_run(row) for row in session.scalars(select(_Row).order_by(_Row.started_unix_ms.desc()))]

    def end_interrupted(self) -> int:
        """Marks runs that were running when the evaluator died as failed; returns how many there were."""
        with self._session.begin() as session:
            rows = list(session.scalars(select(_Row).where(_Row.state == int(evaluator_pb2.RUN_STATE_RUNNING))))
            for row in rows:
                row.state, row.ended_unix_ms = int(evaluator_pb2.RUN_STATE_FAILED), _now_ms()
                row.error = "the evaluator stopped while it ran; start it again to go on from what is stored"
            return len(rows)

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def _get(session: Session, run_id: str) -> _Row:
    row = session.get(_Row, run_id)
    if row is None:
        raise NotFound(f"run {run_id!r}: there is none of this id; ListRuns names them")
    return row


def _to_run(row: _Row) -> evaluator_pb2.Run:
    return evaluator_pb2.Run(
        id=row.id,
        spec=json_format.Parse(row.spec_json, evaluator_pb2.RunSpec()),
        bundle=json_format.Parse(row.bundle_json or "{}", common_pb2.Bundle()),
        state=evaluator_pb2.RunState.Name(row.state),
        error=row.error,
        report=row.report,
        started_unix_ms=row.started_unix_ms,
        ended_unix_ms=row.ended_unix_ms,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
