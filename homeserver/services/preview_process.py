"""Reads one page or one image for a preview: run as a process of its own, by its path, and never imported.

    python preview_process.py page CHARSET < page > JSON
    python preview_process.py image MAX_PIXELS < image > JSON

Like `thumbnail_process.py` it knows nothing of the server and limits its own memory and CPU time before it reads
anything. A page becomes an object with `title`, `description`, `site_name`, `type`, `url`, `image` and `base`, each a
string where there is one; an image one with `type`, `width` and `height`.
"""

import codecs
import json
import os
import re
import resource
import sys
from itertools import islice

CPU_SECONDS = 2
MEMORY = 512 * 1024 * 1024
MAX_TEXT = 1000
MAX_URL = 2000
MAX_PARAGRAPHS = 20
"""Looked at for a description, where a page has none."""
MAX_TITLES = 3
"""Elements of each kind that are looked at for a title: they may stand in each other, each with all of the page."""
MAX_PIECES = 1000
"""Of an element's text."""
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}

for kind, value in (
    (resource.RLIMIT_AS, MEMORY),
    (resource.RLIMIT_CPU, CPU_SECONDS),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(kind, (value, value))

os.nice(5)  # who asks for a preview holds nobody up who does not

_DECLARED = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([a-zA-Z0-9_:.-]{1,40})""", re.IGNORECASE)
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_NOT_OF_PAGES = frozenset(("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"))
"""Encodings that no page has, of which one takes minutes for a megabyte."""
_JOINERS = "\u200c\u200d"
"""Of Persian words, Indian letters, and emoji: what else is not printable may turn text around."""
_SOURCES = {
    "title": ("og:title", "twitter:title"),
    "description": ("og:description", "twitter:description", "description"),
    "site_name": ("og:site_name",),
    "type": ("og:type",),
    "url": ("og:url",),
    "image": ("og:image", "og:image:url", "og:image:secure_url", "twitter:image", "twitter:image:src"),
}
"""By what it becomes, the best first."""


def decode(page: bytes, given: str) -> str:
    """The page as text: by its byte order mark, by what HTTP says, by what it says, as UTF-8, as browsers guess."""
    for mark, charset in _BYTE_ORDER_MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(charset, "replace")
    declared = _DECLARED.search(page[:4096])
    for charset in (given, declared[1].decode() if declared else ""):
        try:
            found = codecs.lookup(charset) if charset else None
            if found is None or found.name.replace("_", "-") in _NOT_OF_PAGES:
                continue
            if found._is_text_encoding:  # else it may unpack, too
                return page.decode(charset, "replace")
        except (LookupError, UnicodeError, ValueError):
            continue
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(page)  # it may be cut off within a character
    except UnicodeDecodeError:
        return page.decode("windows-1252", "replace")


def clean(text: object, longest: int = MAX_TEXT) -> str:
    """In one line and not too long, without what is no text."""
    kept = (each if each.isprintable() or each in _JOINERS else " " for each in str(text or "")[: 20 * longest])
    words = "".join(kept).split()
    line = " ".join(words)
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def read_page(page: bytes, charset: str) -> dict[str, str]:
    """What a page says of itself."""
    from lxml import etree  # noqa: PLC0415  # under the limits, too

    text = decode(page, charset).replace("\0", "")
    text = re.sub(r"^\s*<\?xml[^>]{0,200}\?>", "", text)  # its encoding was that of the bytes
    tree = etree.fromstring(text.encode("utf-8", "replace"), etree.HTMLParser(encoding="utf-8", no_network=True))
    if tree is None:
        return {}
    named: dict[str, str] = {}
    for meta in tree.iterfind(".//meta"):
        name = (meta.get("property") or meta.get("name") or "").strip().lower()
        content = meta.get("content")
        if name and content and content.strip():
            named.setdefault(name, content)
    found = {
        kind: clean(
            next((named[name] for name in names if name in named), ""), MAX_URL if kind == "image" else MAX_TEXT
        )
        for kind, names in _SOURCES.items()
    }
    for kind, look in (("title", _title), ("description", _description), ("image", _image), ("base", _base)):
        found[kind] = found.get(kind) or look(tree)
    if not found["url"].startswith(("https://", "http://")):
        found["url"] = ""
    return {kind: value for kind, value in found.items() if value}


def _text(element) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001  # lxml publishes no types
    return "".join(islice(element.itertext(), MAX_PIECES))


def _title(tree) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001  # lxml publishes no types
    for path in (".//title", ".//h1", ".//h2"):
        for element in islice(tree.iterfind(path), MAX_TITLES):
            text = clean(_text(element))
            if text:
                return text
    return ""


def _description(tree) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001  # lxml publishes no types
    """Its first paragraphs."""
    texts: list[str] = []
    for number, element in enumerate(tree.iterfind(".//p")):
        if number >= MAX_PARAGRAPHS or sum(map(len, texts)) > 300:
            break
        texts.append(clean(_text(element)))
    return clean(" ".join(texts), 500)


def _image(tree) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001  # lxml publishes no types
    for path, attribute in ((".//meta[@itemprop='image']", "content"), (".//link[@rel='image_src']", "href")):
        element = tree.find(path)
        if element is not None and element.get(attribute):
            return clean(element.get(attribute), MAX_URL)
    return ""


def _base(tree) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001  # lxml publishes no types
    element = tree.find(".//base")
    return "" if element is None else clean(element.get("href"), MAX_URL)


def read_image(max_pixels: int) -> dict[str, object]:
    """What the image is, by its own header."""
    from PIL import Image  # noqa: PLC0415  # under the limits, too

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(sys.stdin.buffer, formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
        if image.width * image.height > max_pixels:
            return {}
        return {"type": FORMATS[image.format or ""], "width": image.width, "height": image.height}


def main(arguments: list[str]) -> int:
    """Read the input, write what was found; any failure is an exit code."""
    try:
        if arguments[0] == "page":
            found: object = read_page(sys.stdin.buffer.read(), arguments[1])
        else:
            found = read_image(int(arguments[1]))
    except Exception:  # whatever a parser raises at what strangers wrote
        return 4
    sys.stdout.buffer.write(json.dumps(found).encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
