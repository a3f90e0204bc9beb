// Hydrogen, bundled and served on a port of this machine.
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const MODULES = fileURLToPath(new URL("../node_modules/", import.meta.url));
const ASSETS = [
    "@matrix-org/olm/olm.js",
    "@matrix-org/olm/olm.wasm",
    "@matrix-org/olm/olm_legacy.js",
    "hydrogen-view-sdk/asset-build/assets/download-sandbox.html",
    "hydrogen-view-sdk/asset-build/assets/main.js",
    "hydrogen-view-sdk/lib-build/sw.js",
];
const TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
};
const PAGE = `<!doctype html>
<meta charset="utf-8">
<title>Hydrogen</title>
<link rel="stylesheet" href="style.css">
<body class="hydrogen">
<script type="module" src="app.js"></script>
`;

/** Its address, until the end of the story. */
export async function serveHydrogen(world) {
    const place = await mkdtemp(join(tmpdir(), "hydrogen-"));
    world.atTheEnd.push(() => rm(place, { recursive: true }));
    await build({
        entryPoints: {
            app: fileURLToPath(new URL("app.mjs", import.meta.url)),
            style: join(MODULES, "hydrogen-view-sdk/asset-build/assets/theme-element-light.css"),
        },
        bundle: true,
        external: ["crypto", "fs", "path"], // olm asks for them where there is Node
        format: "esm",
        outdir: place,
        loader: Object.fromEntries([".png", ".svg", ".woff", ".woff2"].map((each) => [each, "file"])),
        logLevel: "error",
    });
    await Promise.all(ASSETS.map((asset) => cp(join(MODULES, asset), join(place, asset.split("/").at(-1)))));
    await writeFile(join(place, "index.html"), PAGE);

    const server = createServer(async (request, response) => {
        const { pathname } = new URL(request.url, "http://localhost");
        try {
            const name = pathname === "/" ? "index.html" : pathname.slice(1);
            response.setHeader("Content-Type", TYPES[extname(name)] ?? "application/octet-stream");
            response.end(await readFile(join(place, name)));
        } catch {
            response.writeHead(404).end();
        }
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    world.atTheEnd.push(() => server.close() && server.closeAllConnections());
    return `http://127.0.0.1:${server.address().port}/`;
}
