"""Regular chores that one process at a time does for all: the database says whose turn it is."""

from sqlalchemy import insert, or_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.tables import ChoreRow


def take(session: Session, name: str, *, every_s: float) -> bool:
    """Whether the caller is to do this chore now; then nobody else is, until it is due again.

    A chore that has never been done is due the first time that long after it was first asked for.
    A clock that was set back puts none off for longer than that.
    """
    due = or_(ChoreRow.due_at <= now(), ChoreRow.due_at > now() + every_s)
    this = update(ChoreRow).where(ChoreRow.name == name)
    taken = session.execute(
        this.where(due).values(due_at=now() + every_s).returning(ChoreRow.name)
    ).first()
    if taken is not None:
        return True
    try:
        with session.begin_nested():
            if session.get(ChoreRow, name) is None:
                session.execute(insert(ChoreRow).values(name=name, due_at=now() + every_s))
    except IntegrityError:  # another process asked at the same moment
        pass
    return False
