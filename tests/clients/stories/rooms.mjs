import assert from "node:assert/strict";

import { Direction, ReceiptType, RelationType, THREAD_RELATION_TYPE } from "matrix-js-sdk";

import { joined, received, refusal, roomOf, until } from "../world.mjs";

async function pair(world) {
    const people = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    return [...people, await roomOf(people)];
}

async function say(client, roomId, body, more = {}) {
    return (await client.sendMessage(roomId, { msgtype: "m.text", body, ...more })).event_id;
}

export async function a_message_is_edited(world) {
    const [alice, bob, roomId] = await pair(world);
    const eventId = await say(alice, roomId, "Meet at noon");
    const event = await received(bob, roomId, eventId);
    await say(alice, roomId, "* Meet at two", {
        "m.new_content": { msgtype: "m.text", body: "Meet at two" },
        "m.relates_to": { rel_type: RelationType.Replace, event_id: eventId },
    });
    await until("bob sees the new text", () => event.getContent().body === "Meet at two");

    const late = await world.device(bob);
    const found = await received(late, roomId, eventId);
    await until("a new device sees it, too", () => found.getContent().body === "Meet at two");
}

export async function reactions_are_counted_and_taken_back(world) {
    const [alice, bob, roomId] = await pair(world);
    const eventId = await say(alice, roomId, "Cake?");
    await received(bob, roomId, eventId);
    const reaction = (key) => ({ "m.relates_to": { rel_type: RelationType.Annotation, event_id: eventId, key } });
    const { event_id: yes } = await bob.sendEvent(roomId, "m.reaction", reaction("🍰"));
    await alice.sendEvent(roomId, "m.reaction", reaction("🍰"));
    const counts = () => {
        const relations = alice.getRoom(roomId).relations.getChildEventsForEvent(eventId, "m.annotation", "m.reaction");
        return (relations?.getSortedAnnotationsByKey() ?? []).map(([key, events]) => [key, events.size]);
    };
    await until("both", () => JSON.stringify(counts()) === '[["🍰",2]]');
    const again = await refusal(bob.sendEvent(roomId, "m.reaction", reaction("🍰")));
    assert.equal(again.errcode, "M_DUPLICATE_ANNOTATION");
    bob.cancelPendingEvent(again.event);

    await bob.redactEvent(roomId, yes);
    await until("one is left", () => JSON.stringify(counts()) === '[["🍰",1]]');
}

export async function receipts_and_typing_are_seen(world) {
    const [alice, bob, roomId] = await pair(world);
    const eventId = await say(alice, roomId, "Are you there?");
    const event = await received(bob, roomId, eventId);
    await bob.sendTyping(roomId, true, 30_000);
    await until("bob types", () => alice.getRoom(roomId).getMember(bob.getUserId()).typing);
    await bob.sendTyping(roomId, false, 0);
    await until("bob has stopped", () => !alice.getRoom(roomId).getMember(bob.getUserId()).typing);

    await bob.sendReadReceipt(event);
    const hasRead = (reader, what) => reader.getRoom(roomId)?.hasUserReadEvent(bob.getUserId(), what);
    await until("alice sees that bob has read it", () => hasRead(alice, eventId));
    const phone = await world.device(bob);
    const next = await say(alice, roomId, "Psst");
    await bob.sendReadReceipt(await received(bob, roomId, next), ReceiptType.ReadPrivate);
    await until("bob's phone knows", () => hasRead(phone, next));
    assert.equal(alice.getRoom(roomId).getEventReadUpTo(bob.getUserId(), true), eventId);
    await bob.setRoomReadMarkers(roomId, next);
    const marker = () => phone.getRoom(roomId).getAccountData("m.fully_read")?.getContent().event_id;
    await until("the marker", () => marker() === next);
}

export async function old_messages_are_fetched_page_by_page(world) {
    const alice = await world.person("alice");
    const roomId = await roomOf([alice]);
    const texts = Array.from({ length: 45 }, (_, number) => `Line ${number}`);
    const ids = [];
    for (const text of texts) {
        ids.push(await say(alice, roomId, text));
    }
    const phone = await world.device(alice);
    const room = await joined(phone, roomId);
    const timeline = room.getLiveTimeline();
    while (await phone.paginateEventTimeline(timeline, { backwards: true, limit: 15 })) {
        // until there is nothing before it
    }
    const read = timeline.getEvents().filter((event) => event.getType() === "m.room.message");
    assert.deepEqual(read.map((event) => event.getContent().body), texts);
    assert.equal(timeline.getEvents()[0].getType(), "m.room.create");

    const around = await phone.getEventTimeline(room.getUnfilteredTimelineSet(), ids[20]);
    assert(around.getEvents().some((event) => event.getId() === ids[20]));
    const { event_id: nearest } = await phone.timestampToEvent(roomId, read[10].getTs(), Direction.Forward);
    assert.equal(room.findEventById(nearest).getTs(), read[10].getTs());
}

export async function a_message_is_taken_back_and_a_member_sent_away(world) {
    const [alice, bob, roomId] = await pair(world);
    const eventId = await say(bob, roomId, "Buy my watches");
    const event = await received(alice, roomId, eventId);
    await alice.redactEvent(roomId, eventId, undefined, { reason: "no adverts" });
    await until("it is gone", () => event.isRedacted() && !event.getContent().body);
    assert.equal((await refusal(bob.kick(roomId, alice.getUserId()))).errcode, "M_FORBIDDEN");
    await alice.setPowerLevel(roomId, bob.getUserId(), 50);
    await until("bob may do more", () => bob.getRoom(roomId).getMember(bob.getUserId()).powerLevel === 50);
    await alice.ban(roomId, bob.getUserId(), "adverts");
    await until("bob is out", () => bob.getRoom(roomId).getMyMembership() === "ban");
    assert.equal((await refusal(bob.joinRoom(roomId))).errcode, "M_FORBIDDEN");
    await alice.unban(roomId, bob.getUserId());
    await until("bob may come again", () => bob.getRoom(roomId).getMyMembership() === "leave");
    await bob.forget(roomId);
}

export async function rooms_are_found_by_alias_and_in_the_directory(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const alias = `garden-${process.pid}-${Date.now()}`;
    const settings = { name: "Garden", room_alias_name: alias, visibility: "public", preset: "public_chat" };
    const roomId = await roomOf([alice], settings);
    const full = `#${alias}:${world.server_name}`;
    assert.equal((await bob.getRoomIdForAlias(full)).room_id, roomId);
    const { chunk } = await bob.publicRooms({ filter: { generic_search_term: "garden" }, limit: 50 });
    assert.equal(chunk.find((room) => room.room_id === roomId).canonical_alias, full);
    const summary = await bob.getRoomSummary(full);
    assert.deepEqual([summary.room_id, summary.name, summary.num_joined_members], [roomId, "Garden", 1]);
    await bob.joinRoom(full);
    assert.equal((await joined(bob, roomId)).name, "Garden");
    const { replacement_room: next } = await alice.upgradeRoom(roomId, "11");
    const tombstone = () => bob.getRoom(roomId).currentState.getStateEvents("m.room.tombstone", "");
    await until("bob is told of the new room", () => tombstone()?.getContent().replacement_room === next);
}

export async function a_space_shows_its_rooms(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const open = { preset: "public_chat" };
    const space = await roomOf([alice], { ...open, name: "House", creation_content: { type: "m.space" } });
    const inner = await roomOf([alice], { ...open, name: "Attic", creation_content: { type: "m.space" } });
    const kitchen = await roomOf([alice], { ...open, name: "Kitchen" });
    const trunk = await roomOf([alice], { ...open, name: "Trunk" });
    const secret = await roomOf([alice], { name: "Safe" });
    const add = (parent, child, more = {}) =>
        alice.sendStateEvent(parent, "m.space.child", { via: [world.server_name], ...more }, child);
    await Promise.all([
        add(space, inner),
        add(space, kitchen, { suggested: true }),
        add(space, secret),
        add(inner, trunk),
    ]);
    assert((await joined(alice, space)).isSpaceRoom());

    const names = async (...options) => {
        const { rooms } = await bob.getRoomHierarchy(space, ...options);
        return rooms.map((room) => room.name).sort();
    };
    assert.deepEqual(await names(), ["Attic", "House", "Kitchen", "Trunk"]);
    assert.deepEqual(await names(50, 1), ["Attic", "House", "Kitchen"]);
    assert.deepEqual(await names(50, 5, true), ["House", "Kitchen"]);
    const page = await bob.getRoomHierarchy(space, 2);
    assert.equal(page.rooms.length, 2);
    const rest = await bob.getRoomHierarchy(space, 10, undefined, false, page.next_batch);
    assert.equal(new Set([...page.rooms, ...rest.rooms].map((room) => room.room_id)).size, 4);
}
