"""How many unread notifications users have in all of their rooms together, for many users at once.

The same numbers as `unread.py` gives room by room, which a test compares; by one statement.
"""

from collections.abc import Collection

from federation.protocol.types import UserID
from storage import strings
from storage.database import Tx

_SQL = f"""
with head as (select position from log_head),
 members as materialized (
  select given.value as user_id, room_state.room from strings given
   join room_state on room_state.state_key = given.id and room_state.type = {strings.MEMBER} and line = 0
    and until_version is null and membership is not null and membership = 1
   where given.value = any(%s::text[])),
 marks as materialized (
  select user_id, room, coalesce(max(position) filter (where thread = ''), 0) as unthreaded,
   coalesce(max(position) filter (where thread = 'main'), 0) as main,
   coalesce(max(notify_total) filter (where thread = 'main'), 0) as main_total
  from members left join read_marks using (user_id, room) group by user_id, room),
 own as materialized (
  select user_id, room, notifications.thread, sum(notify) as notify from marks
   join notifications using (user_id, room)
   left join read_marks using (user_id, room, thread)
   where notifications.position > greatest(unthreaded, coalesce(read_marks.position, 0))
   group by user_id, room, notifications.thread),
 main as (
  select marks.user_id, greatest(rooms.notify_total - case when unthreaded > marks.main then coalesce((
    select notify_total from events where events.room = marks.room and events.position <= unthreaded
     and events.thread is null order by events.position desc limit 1), 0) else main_total end
   + coalesce(own.notify, 0), 0) as unread
  from marks join rooms using (room)
   left join own on own.user_id = marks.user_id and own.room = marks.room and own.thread = 'main'),
 threaded as (
  select marks.user_id, greatest(threads.notify_total - case
    when coalesce(read_marks.position, 0) > unthreaded
    then greatest(read_marks.notify_total, coalesce(before.notify_total, 0))
    else coalesce(before.notify_total, 0) end + coalesce(own.notify, 0), 0) as unread
  from marks join threads on threads.room = marks.room and threads.last_position > marks.unthreaded
   left join read_marks on read_marks.user_id = marks.user_id and read_marks.room = marks.room
    and read_marks.thread = threads.thread
   left join own on own.user_id = marks.user_id and own.room = marks.room and own.thread = threads.thread
   left join lateral (select notify_total from events where events.room = marks.room
     and events.thread = threads.thread and events.position <= marks.unthreaded
     order by events.position desc limit 1) as before on true)
select user_id, sum(unread)::bigint, (select position from head) from
 (select * from main union all select * from threaded) as parts group by user_id
"""


async def totals(tx: Tx, user_ids: Collection[UserID]) -> tuple[dict[UserID, int], int]:
    """The unread notifications of each of these users, none for who is in no room; and the position of the log that
    these are of."""
    rows = await tx.fetch(_SQL, (list(user_ids),))
    if not rows:
        return dict.fromkeys(user_ids, 0), 0
    found = {UserID(user_id): int(unread) for user_id, unread, _ in rows}
    return {user_id: found.get(user_id, 0) for user_id in user_ids}, int(rows[0][2])
