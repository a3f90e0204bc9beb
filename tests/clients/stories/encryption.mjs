import assert from "node:assert/strict";

import { CryptoEvent, VerificationPhase, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";

import { ENCRYPTED, readText, roomOf, until, withPassword } from "../world.mjs";

async function setUpCrossSigning(client) {
    await client.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: (makeRequest) => makeRequest(null) });
}

/** Secret storage with a recovery key, and a key backup. */
async function setUpRecovery(client) {
    const crypto = client.getCrypto();
    const recoveryKey = await crypto.createRecoveryKeyFromPassphrase();
    client.owner.recoveryKey = recoveryKey.privateKey;
    await crypto.bootstrapSecretStorage({
        createSecretStorageKey: async () => recoveryKey,
        setupNewSecretStorage: true,
        setupNewKeyBackup: true,
    });
    assert(await crypto.isSecretStorageReady());
}

/** A new device's owner types in the recovery key that another one showed. */
async function recover(client, other) {
    client.owner.recoveryKey = other.owner.recoveryKey;
    await until("the account's public keys", () => client.getCrypto().userHasCrossSigningKeys(undefined, true));
    await client.getCrypto().bootstrapCrossSigning({});
}

/** Returns once the client has heard of all keys that were published until now, its own too. */
async function hearsOfKeys(client) {
    for (const sent of [client.makeTxnId(), client.makeTxnId()]) {
        // The second comes with another answer than what came beside the first, which has been dealt with then.
        await client.setAccountData("org.example.heard", { sent });
        await until("what was sent", () => client.getAccountData("org.example.heard")?.getContent().sent === sent);
    }
    await until("no key is asked for", async () => (await client.getCrypto().olmMachine.outgoingRequests()).length === 0);
}

async function say(client, roomId, text) {
    return (await client.sendTextMessage(roomId, text)).event_id;
}

export async function two_people_talk_in_an_encrypted_room(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name, { encrypts: true })));
    const roomId = await roomOf([alice, bob], ENCRYPTED);

    const question = await say(alice, roomId, "Is anybody listening?");
    assert.equal(await readText(bob, roomId, question), "Is anybody listening?");
    const reply = await say(bob, roomId, "Nobody but us.");
    assert.equal(await readText(alice, roomId, reply), "Nobody but us.");

    const stored = await alice.fetchRoomEvent(roomId, question);
    assert.equal(stored.type, "m.room.encrypted");
    assert(!JSON.stringify(stored).includes("listening"));
}

export async function cross_signing_keys_are_replaced_with_the_password_only(world) {
    const alice = await world.person("alice", { encrypts: true });
    await setUpCrossSigning(alice);
    const crypto = alice.getCrypto();
    assert(await crypto.isCrossSigningReady());
    const [device] = (await crypto.getUserDeviceInfo([alice.getUserId()], true)).get(alice.getUserId()).values();
    // A client that asked for its keys before it published the signature, and is answered after, forgets that until it
    // hears of the change.
    await until("the device is signed", async () => {
        const status = await crypto.getDeviceVerificationStatus(alice.getUserId(), device.deviceId);
        return status.signedByOwner && status.crossSigningVerified;
    });
    const before = await crypto.getCrossSigningKeyId();

    // A client that is told of its old keys after it made new ones, and before it published these, forgets the new.
    await hearsOfKeys(alice);
    await crypto.bootstrapCrossSigning({
        setupNewCrossSigning: true,
        authUploadDeviceSigningKeys: withPassword(alice),
    });

    assert(await crypto.isCrossSigningReady());
    const after = await crypto.getCrossSigningKeyId();
    assert.notEqual(after, before);
    const published = await alice.downloadKeysForUsers([alice.getUserId()]);
    assert.deepEqual(Object.values(published.master_keys[alice.getUserId()].keys), [after]);
}

export async function a_new_device_reads_old_messages_from_the_key_backup(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name, { encrypts: true })));
    await setUpCrossSigning(alice);
    await setUpRecovery(alice);
    const roomId = await roomOf([alice, bob], ENCRYPTED);
    const question = await say(alice, roomId, "Where did we leave the key?");
    await readText(bob, roomId, question);
    const reply = await say(bob, roomId, "Under the mat.");
    await readText(alice, roomId, reply);
    // The client waits up to 10 s before it sends its keys there; what it says of the backup itself it has remembered.
    const backup = () => alice.http.authedRequest("GET", "/room_keys/version");
    await until("both keys are in the backup", async () => (await backup()).count === 2);
    await alice.logout(true);

    const phone = await world.device(alice, { encrypts: true });
    const crypto = phone.getCrypto();
    assert(!(await crypto.isCrossSigningReady()));
    await recover(phone, alice);
    assert(await crypto.isCrossSigningReady());
    await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
    assert((await crypto.checkKeyBackupAndEnable()).trustInfo.trusted);
    const { total, imported } = await crypto.restoreKeyBackup();
    assert.deepEqual([total, imported], [2, 2]);
    assert.equal(await readText(phone, roomId, question), "Where did we leave the key?");
    assert.equal(await readText(phone, roomId, reply), "Under the mat.");
}

/** Both sides compare emoji, which have to be the same; `request` is the first side's. */
async function compareEmoji(request, otherSide) {
    const theirs = await otherSide;
    await theirs.accept();
    await until("both are ready", () => request.phase === VerificationPhase.Ready);
    const verifier = await request.startVerification("m.sas.v1");
    await until("the other side has heard of it", () => theirs.verifier);
    const shown = [verifier, theirs.verifier].map(
        (each) => new Promise((resolve) => each.on(VerifierEvent.ShowSas, resolve)),
    );
    const done = [verifier.verify(), theirs.verifier.verify()];
    const [one, other] = await Promise.all(shown);
    assert.equal(one.sas.emoji.length, 7);
    assert.deepEqual(one.sas.emoji, other.sas.emoji);
    await Promise.all([one.confirm(), other.confirm()]);
    await Promise.all(done);
}

function nextRequest(client) {
    return new Promise((resolve) => client.once(CryptoEvent.VerificationRequestReceived, resolve));
}

export async function a_new_device_verified_by_emoji_is_given_the_secrets(world) {
    const laptop = await world.person("alice", { encrypts: true });
    await setUpCrossSigning(laptop);
    await setUpRecovery(laptop);
    const phone = await world.device(laptop, { encrypts: true });
    await until("the phone has the account's public keys", () =>
        phone.getCrypto().userHasCrossSigningKeys(undefined, true),
    );

    const asked = nextRequest(laptop);
    await compareEmoji(await phone.getCrypto().requestOwnUserVerification(), asked);

    const { privateKeysCachedLocally } = await until("the phone is given the keys", async () => {
        const status = await phone.getCrypto().getCrossSigningStatus();
        return Object.values(status.privateKeysCachedLocally).every(Boolean) && status;
    });
    assert.deepEqual(privateKeysCachedLocally, { masterKey: true, selfSigningKey: true, userSigningKey: true });
    await until("the phone is given the backup's key", () => phone.getCrypto().getSessionBackupPrivateKey());
    await until("the laptop trusts the phone", async () => {
        const status = await laptop.getCrypto().getDeviceVerificationStatus(phone.getUserId(), phone.getDeviceId());
        return status?.crossSigningVerified;
    });
}

export async function two_people_verify_each_other_by_emoji_in_their_room(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name, { encrypts: true })));
    await Promise.all([alice, bob].map(setUpCrossSigning));
    const roomId = await roomOf([alice, bob], { ...ENCRYPTED, is_direct: true });
    await until("alice has bob's keys", () => alice.getCrypto().userHasCrossSigningKeys(bob.getUserId(), true));
    await until("bob has alice's keys", () => bob.getCrypto().userHasCrossSigningKeys(alice.getUserId(), true));

    const asked = nextRequest(bob);
    await compareEmoji(await alice.getCrypto().requestVerificationDM(bob.getUserId(), roomId), asked);

    for (const [one, other] of [[alice, bob], [bob, alice]]) {
        await until("they trust each other", async () =>
            (await one.getCrypto().getUserVerificationStatus(other.getUserId())).isCrossSigningVerified(),
        );
    }
}

export async function a_sleeping_device_is_sent_keys_that_the_next_one_reads(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name, { encrypts: true })));
    await setUpCrossSigning(alice);
    await setUpRecovery(alice);
    const roomId = await roomOf([alice, bob], ENCRYPTED);
    assert(await alice.getCrypto().isDehydrationSupported());
    await alice.getCrypto().startDehydration();
    await alice.logout(true);
    await until("bob knows the sleeping device, and no other", async () => {
        const devices = (await bob.getCrypto().getUserDeviceInfo([alice.getUserId()], true)).get(alice.getUserId());
        return [...(devices?.values() ?? [])].map((device) => device.dehydrated).join() === "true";
    });
    const eventId = await say(bob, roomId, "Sleep well");

    const phone = await world.device(alice, { encrypts: true });
    await recover(phone, alice);
    await phone.getCrypto().startDehydration();
    assert.equal(await readText(phone, roomId, eventId), "Sleep well");
}
