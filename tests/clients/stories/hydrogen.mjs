import assert from "node:assert/strict";
import { join } from "node:path";

import { openPage } from "../browser.mjs";
import { serveHydrogen } from "../hydrogen/site.mjs";
import { ENCRYPTED, readText, until } from "../world.mjs";

/** A page on which this user has logged in. */
async function logIn(world, username) {
    const page = await openPage(world);
    const site = await serveHydrogen(world);
    // A service worker that comes while the page is used makes it load again, and what was typed is lost.
    await page.goto(`${site}download-sandbox.html`);
    await page.evaluate(async () => {
        await navigator.serviceWorker.register("sw.js");
        await navigator.serviceWorker.ready;
    });
    await page.goto(`${site}?homeserver=${encodeURIComponent(world.base_url)}`);
    await page.getByLabel("Username").fill(username);
    await page.getByLabel("Password").fill(world.password);
    await page.getByRole("button", { name: "Log In" }).click();
    return page;
}

async function acceptInvite(page, name) {
    await page.getByText(name).first().click();
    await page.getByRole("button", { name: "Accept" }).click();
}

export async function someone_in_a_browser_talks_in_an_encrypted_room(world) {
    const [username, session] = await world.register("alice");
    const bob = await world.person("bob", { encrypts: true });
    await bob.setDisplayName("Bob");
    const invite = [session.user_id];
    const settings = { name: "Fireside", preset: "private_chat", invite, ...ENCRYPTED };
    const { room_id: roomId } = await bob.createRoom(settings);

    const page = await logIn(world, username);
    await acceptInvite(page, "Fireside");
    await until("she is in the room", () => bob.getRoom(roomId)?.getMember(session.user_id)?.membership === "join");

    await bob.sendTextMessage(roomId, "Come nearer, it is warm here.");
    await page.getByText("Come nearer, it is warm here.").last().waitFor();
    const composer = page.locator(".MessageComposer textarea");
    await composer.fill("I can hear it crackle!");
    await composer.press("Enter");
    const isReply = (event) => event.getSender() === session.user_id && event.isEncrypted();
    const events = () => bob.getRoom(roomId).getLiveTimeline().getEvents();
    const reply = await until("the reply", () => events().find(isReply));
    assert.equal(await readText(bob, roomId, reply.getId()), "I can hear it crackle!");
    await page.screenshot({ path: join(world.screenshots, "hydrogen.png") });
}
