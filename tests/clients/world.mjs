// The server of a story, and the people in it, who use matrix-js-sdk.
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";

import { createClient, PendingEventOrdering } from "matrix-js-sdk";

const PASSWORD = "correct horse battery staple";
let people = 0;

/** What makes a new room encrypted. */
export const ENCRYPTED = {
    initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
};

/** What `condition` gives as soon as that is true, or an error that says what did not come. */
export async function until(what, condition, seconds = 30) {
    const end = Date.now() + seconds * 1000;
    for (;;) {
        const found = await condition();
        if (found) {
            return found;
        }
        assert(Date.now() < end, `not within ${seconds} s: ${what}`);
        await pause(20);
    }
}

/** The error that a server's refusal became. */
export async function refusal(promise) {
    try {
        await promise;
    } catch (error) {
        return error;
    }
    throw new Error("the server refused nothing");
}

export class World {
    /** `given` holds what the test knows: base_url, server_name, screenshots. */
    constructor(given) {
        Object.assign(this, given);
        this.password = PASSWORD;
        this.atTheEnd = [];
    }

    /** Somebody who is not logged in. */
    visitor() {
        return createClient({ baseUrl: this.base_url });
    }

    /** Whoever has this token. */
    clientWith(accessToken) {
        return createClient({ baseUrl: this.base_url, accessToken });
    }

    /** A new account by both steps of registration, as [user name, the answer]. */
    async register(name) {
        const username = `${name}-${process.pid}-${(people += 1)}`;
        const visitor = this.visitor();
        const first = await refusal(visitor.registerRequest({ username, password: PASSWORD }));
        assert.equal(first.httpStatus, 401);
        assert(first.data.flows.some(({ stages }) => stages.length === 1 && stages[0] === "m.login.dummy"));
        const auth = { type: "m.login.dummy", session: first.data.session };
        return [username, await visitor.registerRequest({ username, password: PASSWORD, auth })];
    }

    /** A new person whose client syncs; `how` is for `client`. */
    async person(name, how = {}) {
        const [, session] = await this.register(name);
        return this.client(session, how);
    }

    /** Another device of the same user. */
    async device(client, how = {}) {
        return this.client(await this.visitor().loginWithPassword(client.getUserId(), PASSWORD), how);
    }

    /**
     * The client of a login, which has had its first sync; ended with the story. With `encrypts` it has keys.
     * When it asks for the recovery key, its owner types in `client.owner.recoveryKey`.
     */
    async client({ user_id, device_id, access_token }, { encrypts = false, start = () => ({}), ...options } = {}) {
        const owner = { recoveryKey: undefined };
        const client = createClient({
            baseUrl: this.base_url,
            userId: user_id,
            deviceId: device_id,
            accessToken: access_token,
            timelineSupport: true,
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) => owner.recoveryKey && [Object.keys(keys)[0], owner.recoveryKey],
            },
            ...options,
        });
        client.owner = owner;
        this.atTheEnd.push(() => client.stopClient());
        if (encrypts) {
            await client.initRustCrypto({ useIndexedDB: false });
        }
        await client.startClient({
            initialSyncLimit: 20,
            lazyLoadMembers: true,
            pendingEventOrdering: PendingEventOrdering.Detached,
            threadSupport: true,
            ...start(client),
        });
        await until("the first sync", () => client.isInitialSyncComplete());
        return client;
    }

    /** Runs after the story, the last of them first. */
    async end() {
        for (const each of this.atTheEnd.reverse()) {
            await each();
        }
    }
}

/** What makes a request for which the user has to give their password: `makeRequest` gets the `auth` to send. */
export function withPassword(client) {
    return async (makeRequest) => {
        const first = await refusal(makeRequest(null));
        assert.equal(first.httpStatus, 401);
        return makeRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user: client.getUserId() },
            password: PASSWORD,
            session: first.data.session,
        });
    };
}

/** The room as this client has it, once its owner is in it. */
export function joined(client, roomId) {
    return until(`${client.getUserId()} is in ${roomId}`, () => {
        const room = client.getRoom(roomId);
        return room?.getMyMembership() === "join" && room;
    });
}

/** A room of these people, the first of whom made it. */
export async function roomOf([maker, ...others], settings = {}) {
    const invite = others.map((other) => other.getUserId());
    const { room_id } = await maker.createRoom({ preset: "private_chat", invite, ...settings });
    for (const other of others) {
        await until("the invite", () => other.getRoom(room_id)?.getMyMembership() === "invite");
        await other.joinRoom(room_id);
        await joined(other, room_id);
    }
    await until("all members", () => sees(maker, room_id, others));
    return room_id;
}

function sees(client, roomId, others) {
    const room = client.getRoom(roomId);
    return others.every((other) => room?.getMember(other.getUserId())?.membership === "join");
}

/** An event that this client has received, not only sent. */
export function received(client, roomId, eventId) {
    return until(`${client.getUserId()} has ${eventId}`, () => {
        const event = client.getRoom(roomId)?.findEventById(eventId);
        return event && !event.isSending() && event;
    });
}

/** A message's text, decrypted if need be. */
export async function readText(client, roomId, eventId) {
    const event = await received(client, roomId, eventId);
    const isReadable = () => event.getType() === "m.room.message" && !event.isDecryptionFailure();
    await until(`${eventId} can be read`, () => !event.isBeingDecrypted() && isReadable());
    return event.getContent().body;
}
