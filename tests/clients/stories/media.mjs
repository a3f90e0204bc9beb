import assert from "node:assert/strict";
import { crc32, deflateSync } from "node:zlib";

import { refusal } from "../world.mjs";

/** A picture in one colour. */
function png(width, height, colour) {
    const chunk = (type, data) => {
        const named = Buffer.concat([Buffer.from(type), data]);
        const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
        length.writeUInt32BE(data.length);
        sum.writeUInt32BE(crc32(named));
        return Buffer.concat([length, named, sum]);
    };
    const header = Buffer.alloc(13);
    header.writeUInt32BE(width, 0);
    header.writeUInt32BE(height, 4);
    header.set([8, 2, 0, 0, 0], 8);
    const line = Buffer.concat([Buffer.from([0]), ...Array(width).fill(Buffer.from(colour))]);
    const pixels = deflateSync(Buffer.concat(Array(height).fill(line)));
    const chunks = [chunk("IHDR", header), chunk("IDAT", pixels), chunk("IEND", Buffer.alloc(0))];
    return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), ...chunks]);
}

/** As a client of today gets a file: with its token, from the address that the SDK makes. */
function download(client, mxc, ...size) {
    const url = client.mxcUrlToHttp(mxc, ...[...size, undefined, undefined, undefined].slice(0, 3), false, true, true);
    return fetch(url, { headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
}

export async function files_come_back_as_they_were_sent(world) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => world.person(name)));
    const limits = await alice.getMediaConfig(true);
    assert(limits["m.upload.size"] > 1_000_000);
    const text = Buffer.from("Dear diary, ☃");
    const { content_uri: mxc } = await alice.uploadContent(text, { name: "diary ☃.txt", type: "text/plain" });
    const answer = await download(bob, mxc);
    assert.equal(answer.status, 200);
    assert.equal(answer.headers.get("content-type").split(";")[0], "text/plain");
    assert(answer.headers.get("content-disposition").includes(encodeURIComponent("diary ☃.txt")));
    assert.deepEqual(Buffer.from(await answer.arrayBuffer()), text);

    const stranger = await fetch(bob.mxcUrlToHttp(mxc, undefined, undefined, undefined, false, true, true));
    assert.deepEqual([stranger.status, (await stranger.json()).errcode], [401, "M_MISSING_TOKEN"]);
    const missing = await download(bob, `mxc://${world.server_name}/nothing`);
    assert.deepEqual([missing.status, (await missing.json()).errcode], [404, "M_NOT_FOUND"]);
}

export async function pictures_are_shown_small(world) {
    const alice = await world.person("alice");
    const fire = png(640, 480, [200, 60, 20]);
    const { content_uri: mxc } = await alice.uploadContent(fire, { name: "fire.png", type: "image/png" });
    const answer = await download(alice, mxc, 96, 96, "crop");
    assert.equal(answer.status, 200);
    assert.match(answer.headers.get("content-type"), /^image\//);
    const picture = Buffer.from(await answer.arrayBuffer());
    assert.deepEqual([picture.readUInt32BE(16), picture.readUInt32BE(20)], [96, 96]);
}
