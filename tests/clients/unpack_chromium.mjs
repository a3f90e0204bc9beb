// Unpacks Chromium, the libraries that it needs beside the C library, and fonts, into the system's temporary directory.
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { inflate } from "@sparticuz/chromium";

const packed = fileURLToPath(new URL("node_modules/@sparticuz/chromium/bin", import.meta.url));
await Promise.all(["chromium.br", "al2023.tar.br", "fonts.tar.br"].map((name) => inflate(join(packed, name))));
const fonts = join(tmpdir(), "fonts");
await writeFile(
    join(fonts, "fonts.conf"),
    `<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>${fonts}</dir><cachedir>${join(fonts, "cache")}</cachedir></fontconfig>
`,
);
