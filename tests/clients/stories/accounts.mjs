import assert from "node:assert/strict";

import { PushRuleKind, PushRuleActionName } from "matrix-js-sdk";

import { refusal, roomOf, until, withPassword } from "../world.mjs";

export async function an_account_is_made_used_and_left(world) {
    const [username, session] = await world.register("alice");
    assert.equal(session.user_id, `@${username}:${world.server_name}`);
    const visitor = world.visitor();
    assert.equal(await visitor.isUsernameAvailable(username), false);
    assert.equal(await visitor.isUsernameAvailable(`${username}-too`), true);
    const { flows } = await visitor.loginFlows();
    assert(flows.some(({ type }) => type === "m.login.password"));
    const wrong = await refusal(visitor.loginWithPassword(username, "open sesame"));
    assert.deepEqual([wrong.httpStatus, wrong.errcode], [403, "M_FORBIDDEN"]);

    const alice = await world.client(await visitor.loginWithPassword(username, world.password));
    assert.equal((await alice.whoami()).user_id, session.user_id);
    assert.equal((await alice.getDevices()).devices.length, 2);
    await alice.setDeviceDetails(alice.getDeviceId(), { display_name: "Kitchen" });
    assert.equal((await alice.getDevice(alice.getDeviceId())).display_name, "Kitchen");
    assert.equal((await alice.getCapabilities())["m.change_password"]?.enabled, true);

    await withPassword(alice)((auth) => alice.deleteDevice(session.device_id, auth ?? undefined));
    assert.deepEqual((await alice.getDevices()).devices.map((each) => each.device_id), [alice.getDeviceId()]);

    const token = alice.getAccessToken();
    await alice.logout(true);
    const gone = await refusal(world.clientWith(token).whoami());
    assert.deepEqual([gone.httpStatus, gone.errcode], [401, "M_UNKNOWN_TOKEN"]);
}

export async function a_refresh_token_gives_new_tokens(world) {
    const [username] = await world.register("alice");
    const visitor = world.visitor();
    const login = {
        type: "m.login.password",
        identifier: { type: "m.id.user", user: username },
        password: world.password,
        refresh_token: true,
    };
    const session = await visitor.loginRequest(login);
    const renewed = await visitor.refreshToken(session.refresh_token);
    assert.notEqual(renewed.access_token, session.access_token);
    assert.equal((await world.clientWith(renewed.access_token).whoami()).device_id, session.device_id);
}

export async function a_profile_is_seen_by_others(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const roomId = await roomOf([alice, bob]);

    await alice.setDisplayName("Alice of the Hill");
    await alice.setAvatarUrl(`mxc://${world.server_name}/face`);
    await until("bob sees her name in the room", () =>
        bob.getRoom(roomId).getMember(alice.getUserId()).name === "Alice of the Hill",
    );
    const profile = { displayname: "Alice of the Hill", avatar_url: `mxc://${world.server_name}/face` };
    assert.deepEqual(await bob.getProfileInfo(alice.getUserId()), profile);

    assert(await alice.doesServerSupportExtendedProfiles());
    await alice.setExtendedProfileProperty("org.example.garden", { roses: 3 });
    assert.deepEqual(await bob.getExtendedProfileProperty(alice.getUserId(), "org.example.garden"), { roses: 3 });
    await alice.deleteExtendedProfileProperty("org.example.garden");
    const carol = await world.person("carol"); // bob's client remembers
    assert.equal(await carol.getExtendedProfileProperty(alice.getUserId(), "org.example.garden"), undefined);
}

export async function account_data_and_ignored_people_reach_the_other_device(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const phone = await world.device(alice);
    await alice.setAccountData("org.example.lamp", { lit: true });
    await until("the data", () => phone.getAccountData("org.example.lamp")?.getContent().lit);
    await alice.setIgnoredUsers([bob.getUserId()]);
    await until("the list", () => phone.isUserIgnored(bob.getUserId()));

    const roomId = await roomOf([alice]);
    await alice.setRoomTag(roomId, "m.favourite", { order: 0.5 });
    await until("the tag", () => phone.getRoom(roomId)?.tags["m.favourite"]?.order === 0.5);
    await alice.deleteRoomTag(roomId, "m.favourite");
    await until("no tag", () => !phone.getRoom(roomId).tags["m.favourite"]);
}

export async function push_rules_decide_what_counts(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const [loud, silent] = [await roomOf([bob, alice]), await roomOf([bob, alice])];
    await alice.addPushRule("global", PushRuleKind.ContentSpecific, "tea", {
        pattern: "tea",
        actions: [PushRuleActionName.Notify, { set_tweak: "highlight" }],
    });
    await alice.setRoomMutePushRule("global", silent, true);
    assert.deepEqual(alice.getRoomPushRule("global", silent).actions, []);
    const rules = await alice.getPushRules();
    assert(rules.global.content.some((rule) => rule.rule_id === "tea" && rule.enabled));

    await bob.sendTextMessage(silent, "psst");
    await bob.sendTextMessage(loud, "hello");
    const { event_id: last } = await bob.sendTextMessage(loud, "tea is ready");
    const room = alice.getRoom(loud);
    const counts = () => ["total", "highlight"].map((each) => room.getUnreadNotificationCount(each)).join();
    await until("the counts", () => counts() === "2,1");
    assert.equal(alice.getRoom(silent).getUnreadNotificationCount("total"), 0);

    await alice.sendReadReceipt(room.findEventById(last));
    await until("nothing is unread", () => room.getUnreadNotificationCount("total") === 0);
    await alice.setPushRuleEnabled("global", PushRuleKind.ContentSpecific, "tea", false);
    await alice.deletePushRule("global", PushRuleKind.ContentSpecific, "tea");
    assert(!(await alice.getPushRules()).global.content.some((rule) => rule.rule_id === "tea"));
}

export async function a_call_is_given_a_relay(world) {
    const alice = await world.person("alice");
    const { uris, username, password, ttl } = await alice.turnServer();
    assert.deepEqual(uris, ["turn:turn.hearth.test?transport=udp"]);
    assert.equal(username.split(":").slice(1).join(":"), alice.getUserId());
    assert(password && ttl > 0);
}

export async function a_new_password_ends_the_other_devices(world) {
    const alice = await world.person("alice");
    const other = await world.visitor().loginWithPassword(alice.getUserId(), world.password);
    await withPassword(alice)((auth) => alice.setPassword(auth ?? undefined, "an even better horse", true));
    assert.equal((await alice.whoami()).device_id, alice.getDeviceId());
    assert.equal((await refusal(world.clientWith(other.access_token).whoami())).errcode, "M_UNKNOWN_TOKEN");
    const old = await refusal(world.visitor().loginWithPassword(alice.getUserId(), world.password));
    assert.equal(old.errcode, "M_FORBIDDEN");
}

export async function a_phone_is_registered_for_pushes(world) {
    const alice = await world.person("alice");
    const pusher = {
        app_id: "org.example.phone",
        app_display_name: "Example",
        device_display_name: "Phone",
        kind: "http",
        lang: "en",
        pushkey: "abc",
        data: { url: "https://push.example.org/_matrix/push/v1/notify", format: "event_id_only" },
    };
    await alice.setPusher(pusher);
    const [kept, ...more] = (await alice.getPushers()).pushers;
    assert.deepEqual([kept.pushkey, kept.data.format, more.length], ["abc", "event_id_only", 0]);
    await alice.removePusher("abc", "org.example.phone");
    assert.deepEqual((await alice.getPushers()).pushers, []);
}

export async function a_device_lets_another_one_in(world) {
    const alice = await world.person("alice");
    const { login_token: token } = await withPassword(alice)((auth) => alice.requestLoginToken(auth ?? undefined));
    const session = await world.visitor().loginWithToken(token);
    assert.equal(session.user_id, alice.getUserId());
    assert.notEqual(session.device_id, alice.getDeviceId());
    assert.equal((await refusal(world.visitor().loginWithToken(token))).errcode, "M_FORBIDDEN");
}
