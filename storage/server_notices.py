"""The rooms in which users get notices of the server (table `server_notice_rooms`): one for each user and sender."""

from federation.protocol.types import RoomID, UserID
from storage.database import Tx


async def find_room(tx: Tx, user_id: UserID, sender: UserID) -> RoomID | None:
    """Where this sender writes to the user."""
    row = await tx.fetch_one(
        "select room_id from server_notice_rooms where user_id = %s and sender = %s", (user_id, sender)
    )
    return None if row is None else RoomID(row[0])


async def insert_room(tx: Tx, user_id: UserID, sender: UserID, room_id: RoomID) -> bool:
    """This is where, from now on; false where there is such a room."""
    return (
        await tx.execute(
            "insert into server_notice_rooms (user_id, sender, room_id) values (%s, %s, %s) on conflict do nothing",
            (user_id, sender, room_id),
        )
        == 1
    )
