import assert from "node:assert/strict";

import { GuestAccess, HistoryVisibility, JoinRule } from "matrix-js-sdk";

import { joined, received, refusal, roomOf, until } from "../world.mjs";

async function pair(world) {
    return Promise.all(["alice", "bob"].map((name) => world.person(name)));
}

export async function who_is_there_and_what_they_do_is_seen(world) {
    const [alice, bob] = await pair(world);
    await roomOf([alice, bob]);
    await alice.setPresence({ presence: "unavailable", status_msg: "Chopping wood" });
    await until("bob sees it", () => bob.getUser(alice.getUserId())?.presenceStatusMsg === "Chopping wood");
    const { status_msg: told } = await bob.getPresence(alice.getUserId());
    assert.equal(told, "Chopping wood");
}

export async function somebody_knocks_and_is_let_in(world) {
    const [alice, bob] = await pair(world);
    const roomId = await roomOf([alice], {
        initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: JoinRule.Knock } }],
    });
    await joined(alice, roomId);
    assert.equal((await refusal(bob.joinRoom(roomId))).errcode, "M_FORBIDDEN");
    await bob.knockRoom(roomId, { reason: "It is cold out here", viaServers: [world.server_name] });
    await until("bob has knocked", () => bob.getRoom(roomId)?.getMyMembership() === "knock");
    const member = await until("alice hears it", () => alice.getRoom(roomId).getMember(bob.getUserId()));
    assert.deepEqual([member.membership, member.events.member.getContent().reason], ["knock", "It is cold out here"]);
    await alice.invite(roomId, bob.getUserId());
    await until("bob is asked in", () => bob.getRoom(roomId).getMyMembership() === "invite");
    await bob.joinRoom(roomId);
    await joined(bob, roomId);
}

export async function an_invite_is_declined(world) {
    const [alice, bob] = await pair(world);
    const { room_id: roomId } = await alice.createRoom({ invite: [bob.getUserId()], is_direct: true });
    await until("the invite", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    await bob.leave(roomId);
    await until("bob has declined", () => bob.getRoom(roomId).getMyMembership() === "leave");
    const room = await joined(alice, roomId);
    await until("alice sees it", () => room.getMember(bob.getUserId())?.membership === "leave");
}

export async function a_guest_looks_into_a_room_and_joins_it(world) {
    const alice = await world.person("alice");
    const state = (type, content) => ({ type, state_key: "", content });
    const roomId = await roomOf([alice], {
        preset: "public_chat",
        initial_state: [
            state("m.room.history_visibility", { history_visibility: HistoryVisibility.WorldReadable }),
            state("m.room.guest_access", { guest_access: GuestAccess.CanJoin }),
        ],
    });
    const { event_id: sign } = await alice.sendTextMessage(roomId, "Visitors welcome");

    const session = await world.visitor().registerGuest({ body: {} });
    const guest = await world.client(session, { start: (client) => client.setGuest(true) });
    const room = await guest.peekInRoom(roomId);
    assert.equal(room.findEventById(sign).getContent().body, "Visitors welcome");
    const { event_id: news } = await alice.sendTextMessage(roomId, "Tea is ready");
    await until("the guest hears more", () => room.findEventById(news));
    guest.stopPeeking();
    await guest.joinRoom(roomId);
    await joined(guest, roomId);
    assert.equal((await refusal(guest.createRoom({}))).errcode, "M_GUEST_ACCESS_FORBIDDEN");
}

export async function a_message_is_sent_later_or_not_at_all(world) {
    const [alice, bob] = await pair(world);
    const roomId = await roomOf([alice, bob]);
    const content = (body) => ({ msgtype: "m.text", body });
    const later = (delay, body) =>
        alice._unstable_sendDelayedEvent(roomId, { delay }, null, "m.room.message", content(body));
    await later(300, "Good morning");
    const { delay_id: never } = await later(60_000, "Good night");
    await alice._unstable_cancelScheduledDelayedEvent(never);
    const { delay_id: soon } = await later(60_000, "Hurry");
    await alice._unstable_sendScheduledDelayedEvent(soon);
    const heard = () => bob.getRoom(roomId).getLiveTimeline().getEvents().map((event) => event.getContent().body);
    await until("both", () => heard().includes("Good morning") && heard().includes("Hurry"));
    assert(!heard().includes("Good night"));
}

export async function trouble_is_reported(world) {
    const [alice, bob] = await pair(world);
    const roomId = await roomOf([alice, bob]);
    const { event_id: eventId } = await bob.sendTextMessage(roomId, "Buy my watches");
    await received(alice, roomId, eventId);
    await alice.reportEvent(roomId, eventId, -50, "adverts");
    await alice.reportRoom(roomId, "adverts");
    const token = await alice.getOpenIdToken();
    assert.equal(token.matrix_server_name, world.server_name);
}
