import assert from "node:assert/strict";

import { SlidingSync } from "matrix-js-sdk/lib/sliding-sync.js";

import { ENCRYPTED, readText, received, roomOf, until } from "../world.mjs";

/** The newest two rooms, with their last messages. */
function newestTwo(client) {
    const all = { required_state: [["*", "*"]] };
    const lists = new Map([["rooms", { ...all, ranges: [[0, 1]], timeline_limit: 5 }]]);
    return new SlidingSync(client.baseUrl, lists, { ...all, timeline_limit: 20 }, client, 10_000);
}

export async function a_phone_has_the_newest_rooms_first(world) {
    const bob = await world.person("bob");
    const [, session] = await world.register("alice");
    const rooms = [];
    for (const name of ["Attic", "Cellar", "Garden", "Kitchen"]) {
        rooms.push(await roomOf([bob], { name, preset: "public_chat" }));
        await world.clientWith(session.access_token).joinRoom(rooms.at(-1));
        await bob.sendTextMessage(rooms.at(-1), `First word in the ${name}`);
    }

    let slidingSync;
    const start = (client) => ({ slidingSync: (slidingSync = newestTwo(client)) });
    const alice = await world.client(session, { start });
    const names = () => alice.getRooms().map((room) => room.name).sort();
    await until("the newest rooms", () => names().join() === "Garden,Kitchen");
    assert.equal(slidingSync.getListData("rooms").joinedCount, 4);

    const { event_id: news } = await bob.sendTextMessage(rooms[0], "Who left the light on?");
    await received(alice, rooms[0], news);
    await until("its name", () => alice.getRoom(rooms[0]).name === "Attic");

    slidingSync.modifyRoomSubscriptions(new Set([rooms[1]]));
    const cellar = await until("the room that she opens", () => alice.getRoom(rooms[1]));
    const said = () => cellar.getLiveTimeline().getEvents().map((event) => event.getContent().body);
    await until("what was said there", () => said().includes("First word in the Cellar"));
    await alice.sendReadReceipt(alice.getRoom(rooms[0]).findEventById(news));
    await until("nothing is unread", () => alice.getRoom(rooms[0]).getUnreadNotificationCount("total") === 0);
    await until("bob sees it", () => bob.getRoom(rooms[0]).hasUserReadEvent(alice.getUserId(), news));
    await bob.sendTyping(rooms[0], true, 30_000);
    await until("bob types", () => alice.getRoom(rooms[0]).getMember(bob.getUserId())?.typing);
}

export async function a_phone_talks_in_an_encrypted_room(world) {
    const bob = await world.person("bob", { encrypts: true });
    const alice = await world.person("alice", {
        encrypts: true,
        start: (client) => ({ slidingSync: newestTwo(client) }),
    });
    const roomId = await roomOf([bob, alice], { name: "Fireside", ...ENCRYPTED });
    const { event_id: question } = await bob.sendTextMessage(roomId, "Can you read this on your phone?");
    assert.equal(await readText(alice, roomId, question), "Can you read this on your phone?");
    const { event_id: answer } = await alice.sendTextMessage(roomId, "Yes, and quickly.");
    assert.equal(await readText(bob, roomId, answer), "Yes, and quickly.");

    await alice.setAccountData("org.example.lamp", { lit: true });
    await until("account data", () => alice.getAccountData("org.example.lamp")?.getContent().lit);
}
