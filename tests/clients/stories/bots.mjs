import assert from "node:assert/strict";

import { ENCRYPTED, joined, readText, until } from "../world.mjs";

/** The bot, `world.bot`, accepts invites, answers messages with an echo, and pins a reaction on what it has read. */
export async function someone_talks_to_a_bot_in_an_encrypted_room(world) {
    const alice = await world.person("alice", { encrypts: true });
    const { room_id: roomId } = await alice.createRoom({ preset: "private_chat", invite: [world.bot], ...ENCRYPTED });
    const room = await joined(alice, roomId);
    await until("the bot is in", () => room.getMember(world.bot)?.membership === "join");

    const { event_id: eventId } = await alice.sendTextMessage(roomId, "Anybody home?");
    const isAnswer = (event) => event.getSender() === world.bot && event.getWireType() === "m.room.encrypted";
    const answer = await until("the answer", () => room.getLiveTimeline().getEvents().find(isAnswer));
    assert.equal(await readText(alice, roomId, answer.getId()), "You said: Anybody home?");
    const reactions = () => room.relations.getChildEventsForEvent(eventId, "m.annotation", "m.reaction");
    await until("its reaction", () => reactions()?.getRelations()[0]?.getRelation().key === "🤖");
}
