// Chromium without a window.
import { join } from "node:path";

import { chromium } from "playwright-core";

const PLACE = process.env.CHROMIUM;

/** A page that nothing is on yet; closed with the story. */
export async function openPage(world) {
    const browser = await chromium.launch({
        executablePath: join(PLACE, "chromium"),
        args: [
            "--no-sandbox", // root may not have one, nor may everybody in a container
            "--no-zygote",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ],
        env: { ...process.env, LD_LIBRARY_PATH: join(PLACE, "al2023", "lib"), FONTCONFIG_PATH: join(PLACE, "fonts") },
    });
    world.atTheEnd.push(() => browser.close());
    const page = await browser.newPage({ viewport: { width: 1000, height: 700 } });
    page.setDefaultTimeout(30_000);
    page.on("response", (answer) => answer.ok() || console.warn(`page: ${answer.status()} of ${answer.url()}`));
    page.on("requestfailed", (request) => console.warn(`page: ${request.url()}: ${request.failure().errorText}`));
    page.on("console", (message) => console.warn(`page: ${message.text()}`));
    page.on("pageerror", (error) => console.warn(`page: ${error.stack}`));
    return page;
}
