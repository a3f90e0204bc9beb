import assert from "node:assert/strict";

import { received, roomOf, until } from "../world.mjs";

export async function messages_are_found_by_their_words(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const roomId = await roomOf([alice, bob]);
    const elsewhere = await roomOf([bob]);
    for (const number of Array(14).keys()) {
        await bob.sendTextMessage(roomId, `A lighthouse, number ${number}`);
    }
    await bob.sendTextMessage(roomId, "A windmill");
    await bob.sendTextMessage(elsewhere, "A lighthouse that is nobody's business");
    const { event_id: last } = await bob.sendTextMessage(roomId, "我们在灯塔见面");
    await received(alice, roomId, last);

    const chinese = await until("the last of them can be found", async () => {
        const { results } = await alice.searchRoomEvents({ term: "灯塔" });
        return results.length > 0 && results;
    });
    assert.deepEqual(chinese.map((each) => each.context.getEvent().getId()), [last]);

    const found = await alice.searchRoomEvents({ term: "lighthouse" });
    while (found.next_batch) {
        await alice.backPaginateRoomEventsSearch(found);
    }
    const bodies = found.results.map((each) => each.context.getEvent().getContent().body);
    assert.deepEqual(bodies, Array.from({ length: 14 }, (_, number) => `A lighthouse, number ${13 - number}`));
    assert(found.highlights.includes("lighthouse"));
    assert.equal(found.results[3].context.getTimeline().length, 3);
    const filtered = await alice.searchRoomEvents({ term: "lighthouse", filter: { senders: [alice.getUserId()] } });
    assert.equal(filtered.count, 0);
}

export async function people_are_found_by_their_names(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    await roomOf([alice, bob]);
    await bob.setDisplayName("Balthazar of the Ferry");
    await until("he is found", async () => {
        const { results } = await alice.searchUserDirectory({ term: "balthazar" });
        return results.some((each) => each.user_id === bob.getUserId());
    });
}
