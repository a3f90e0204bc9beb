// Tells the stories that it is asked for: a line of JSON in, {file, story, world}, a line out, {} or {failure}.
import { createInterface } from "node:readline";
import { format } from "node:util";

import { World } from "./world.mjs";

const SECONDS = 90;
const answer = process.stdout.write.bind(process.stdout);

for (const quiet of ["debug", "info", "log", "trace"]) {
    console[quiet] = () => {};
}
for (const loud of ["error", "warn"]) {
    console[loud] = (...said) => process.stderr.write(`${format(...said)}\n`);
}
process.on("unhandledRejection", (error) => console.error("nobody waited for this:", error));

async function tell({ file, story, world: given }) {
    const world = new World(given);
    let timer;
    const patience = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`the story took more than ${SECONDS} s`)), SECONDS * 1000);
    });
    try {
        const stories = await import(`./stories/${file}.mjs`);
        try {
            await Promise.race([stories[story](world), patience]);
        } finally {
            clearTimeout(timer);
            await world.end();
        }
        return {};
    } catch (error) {
        return { failure: format(error) };
    }
}

for await (const line of createInterface({ input: process.stdin })) {
    answer(`${JSON.stringify(await tell(JSON.parse(line)))}\n`);
}
process.exit();
