import assert from "node:assert/strict";

import { RelationType } from "matrix-js-sdk";

import { joined, received, roomOf, until } from "../world.mjs";

/** Without a local echo: the SDK fails where a sync brings the message of a thread before the answer to its sending. */
async function say(client, roomId, body, root) {
    const relation = root && { "m.relates_to": { rel_type: RelationType.Thread, event_id: root } };
    const path = `/rooms/${encodeURIComponent(roomId)}/send/m.room.message/${client.makeTxnId()}`;
    const content = { msgtype: "m.text", body, ...relation };
    return (await client.http.authedRequest("PUT", path, undefined, content)).event_id;
}

const texts = (thread) => thread.events.map((event) => event.getContent().body);

export async function a_thread_is_told_beside_the_room(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const roomId = await roomOf([alice, bob]);
    const root = await say(alice, roomId, "Who brings what?");
    await received(bob, roomId, root);
    await say(bob, roomId, "Bread", root);
    const room = alice.getRoom(roomId);
    // The SDK asks for the thread once, and takes the answer for newer than what syncs bring meanwhile.
    const thread = await until("the thread", () => room.getThread(root)?.initialEventsFetched && room.getThread(root));
    const second = await say(bob, roomId, "Salt", root);
    // The SDK takes for newer what took less time from the server: so the next is sent once this has come.
    await until("its second message", () => thread.replyToEvent?.getId() === second);
    const last = await say(bob, roomId, "And firewood", root);
    await until("its last message", () => thread.replyToEvent?.getId() === last);
    assert.deepEqual(texts(thread), ["Who brings what?", "Bread", "Salt", "And firewood"]);
    assert(!room.getLiveTimeline().getEvents().some((event) => event.getId() === last));

    const inThread = () => room.getThreadUnreadNotificationCount(root, "total");
    await until("three are unread", () => inThread() === 3);
    assert.equal(room.getRoomUnreadNotificationCount("total"), 0);
    await alice.sendReadReceipt(thread.replyToEvent);
    await until("they are read", () => inThread() === 0);
}

export async function a_new_device_lists_threads_and_reads_them(world) {
    const alice = await world.person("alice");
    const roomId = await roomOf([alice]);
    const roots = [];
    for (const title of ["Garden", "Attic"]) {
        const root = await say(alice, roomId, title);
        roots.push(root);
        for (let number = 1; number <= 30; number += 1) {
            await say(alice, roomId, `${title} ${number}`, root);
        }
    }

    const phone = await world.device(alice);
    const room = await joined(phone, roomId);
    await room.createThreadsTimelineSets();
    await room.fetchRoomThreads();
    assert.deepEqual(new Set(room.getThreads().map((each) => each.id)), new Set(roots));
    const thread = room.getThread(roots[0]);
    await until("the thread's end", () => thread.length === 30 && thread.events.length > 0);
    while (await phone.paginateEventTimeline(thread.liveTimeline, { backwards: true, limit: 12 })) {
        // until there is nothing before it
    }
    const expected = ["Garden", ...Array.from({ length: 30 }, (_, index) => `Garden ${index + 1}`)];
    assert.deepEqual(texts(thread), expected);
}

export async function answers_to_a_question_are_gathered(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const roomId = await roomOf([alice, bob]);
    const question = await say(alice, roomId, "Tea or coffee?");
    await received(bob, roomId, question);
    for (const key of ["🍵", "☕"]) {
        const relation = { rel_type: RelationType.Annotation, event_id: question, key };
        await bob.sendEvent(roomId, "m.reaction", { "m.relates_to": relation });
    }
    const { originalEvent, events } = await alice.relations(roomId, question, RelationType.Annotation, "m.reaction");
    assert.equal(originalEvent.getId(), question);
    assert.deepEqual(events.map((event) => event.getRelation().key), ["☕", "🍵"]);
}
