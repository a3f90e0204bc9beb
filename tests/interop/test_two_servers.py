"""Each server runs, and its users can use it."""

from tests.interop.people import Person


async def test_users_of_each_server_talk_with_themselves(alice: Person, bob: Person) -> None:
    for person in (alice, bob):
        room_id = await person.create_room(name="alone")
        event_id = await person.says(room_id, "nobody hears me")

        assert (await person.sees(room_id, event_id))["sender"] == person.user_id
        assert await person.texts(room_id) == ["nobody hears me"]
        assert (await person.state(room_id, "m.room.name")) == {"name": "alone"}
