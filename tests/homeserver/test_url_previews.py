"""Previews of pages (Client-Server API, "Content repository", `preview_url`), of a site on loopback."""

import asyncio
import gzip
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

import psycopg
import pytest
import pytest_asyncio
from aiohttp import web
from PIL import Image

from homeserver.config import RateLimit, RateLimits, URLPreviews
from homeserver.services import url_previews
from tests.client import Answer, Client, Server
from tests.processor import slowness
from tests.servers import running

LOOPBACK = (ip_network("127.0.0.0/8"),)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def a_picture(size: tuple[int, int] = (60, 40), kind: str = "PNG") -> bytes:
    output = io.BytesIO()
    Image.new("RGB", size, "red").save(output, kind)
    return output.getvalue()


@dataclass(slots=True)
class Site:
    """A web site on loopback; tests put pages there by path."""

    port: int = 0
    pages: dict[str, Handler] = field(default_factory=dict)
    requests: list[web.Request] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def put(self, path: str, body: str | bytes, content_type: str = "text/html; charset=utf-8", **headers: str) -> str:
        data = body.encode() if isinstance(body, str) else body
        whole = {"Content-Type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(body=data, headers=whole)

        self.pages[path] = answer
        return self.url(path)

    def redirect(self, path: str, target: str) -> str:
        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": target})

        self.pages[path] = answer
        return self.url(path)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.BaseRequest)
        self.requests.append(request)  # type: ignore[arg-type]  # what of it is read is in both
        handler = self.pages.get(request.path)
        return web.Response(status=404) if handler is None else await handler(request)  # type: ignore[arg-type]

    def asked(self, path: str) -> int:
        return len([request for request in self.requests if request.path == path])


@asynccontextmanager
async def a_site() -> AsyncIterator[Site]:
    site = Site()
    runner = web.ServerRunner(web.Server(site.answer), shutdown_timeout=0.1)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    site.port = runner.addresses[0][1]
    try:
        yield site
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as site:
        yield site


@pytest_asyncio.fixture(scope="session")
async def looking(databases: Callable[[str], str]) -> AsyncIterator[Server]:
    """A server that may go to loopback, and to no host whose name says that it is denied."""
    settings = URLPreviews(
        allowed_ranges=LOOPBACK,
        denied_hosts=("127.0.0.66", "*.Denied.test", "xn--mxico-bsa.test", "köln.test"),
        accept_language=("de", "en;q=0.5"),
    )
    async with running(databases("previews"), url_previews=settings) as server:
        yield server


@pytest_asyncio.fixture
async def reader(looking: Server) -> Client:
    return await looking.register()


async def preview(client: Client, url: str, **query: int) -> Answer:
    return await client.get("/v1/media/preview_url", url=url, **query)


# --- what there is to see


async def test_a_page_says_what_it_is(reader: Client, site: Site) -> None:
    picture = a_picture()
    site.put("/pictures/a.png", picture, "image/png")
    url = site.put(
        "/page",
        '<html><head><title>Other</title><meta property="og:title" content="A &amp; B &#x1F600;">'
        '<meta property="og:description" content=" two\n lines "><meta property="og:site_name" content="Site">'
        '<meta property="og:type" content="article"><meta property="og:url" content="https://example.org/page">'
        '<meta property="og:image" content="pictures/a.png"><meta property="og:image:width" content="7">'
        '<meta property="og:video" content="https://example.org/v.mp4"></head><body><p>Text</p></body></html>',
    )

    status, body = await preview(reader, url)

    assert status == 200
    image = body.pop("og:image")
    assert body == {
        "og:title": "A & B 😀",
        "og:description": "two lines",
        "og:site_name": "Site",
        "og:type": "article",
        "og:url": "https://example.org/page",
        "og:image:type": "image/png",
        "og:image:width": 60,
        "og:image:height": 40,
        "matrix:image:size": len(picture),
    }
    media = await reader.get("/v1/media/download/" + image.removeprefix("mxc://"))
    assert (media.status, media.body, media.headers["Content-Type"]) == (200, picture, "image/png")


async def test_a_page_without_such_words_is_described_by_what_it_shows(reader: Client, site: Site) -> None:
    plain = site.put("/plain", "<title> A  title </title><style>p{}</style><p>First.</p><script>x</script><p>More")
    meta = site.put("/meta", '<h1>A heading</h1><meta name="description" content="Described"><p>Text')
    twitter = site.put(
        "/twitter", '<meta name="twitter:title" content="T"><meta name="twitter:description" content="D">'
    )
    empty = site.put("/empty", "")
    odd = site.put("/odd", '<title>a\u202eb 👩\u200d🚀</title><meta property="og:url" content="javascript:alert(1)">')

    assert (await preview(reader, plain)).body == {"og:title": "A title", "og:description": "First. More"}
    assert (await preview(reader, meta)).body == {"og:title": "A heading", "og:description": "Described"}
    assert (await preview(reader, twitter)).body == {"og:title": "T", "og:description": "D"}
    assert (await preview(reader, empty)).status in (200, 502)
    assert (await preview(reader, odd)).body == {"og:title": "a b 👩\u200d🚀"}


async def test_an_image_is_its_own_preview(reader: Client, site: Site) -> None:
    picture = a_picture(kind="JPEG")
    status, body = await preview(reader, site.put("/a.jpg", picture, "image/png"))

    assert (status, body["og:image:type"], body["matrix:image:size"]) == (200, "image/jpeg", len(picture))


@pytest.mark.parametrize("content_type", ["application/pdf", "text/plain", "video/mp4", "", "nonsense"])
async def test_what_is_neither_page_nor_image_has_nothing_to_say(reader: Client, site: Site, content_type: str) -> None:
    url = site.put("/other", "<title>x</title>", content_type)

    assert tuple(await preview(reader, url)) == (200, {})


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", "<title>Grüße</title>".encode()),
        ("text/html", "<title>Grüße</title>".encode("utf-16")),
        ("text/html", "<title>Grüße</title>".encode("windows-1252")),
        ("text/html", b"<meta charset='iso-8859-15'><title>Gr\xfc\xdfe</title>"),
        ("text/html", b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><title>Gr\xc6</title>'),
        ("text/html; charset=windows-1252", "<title>Grüße</title>".encode("windows-1252")),
        ("text/html; charset=none-such", "<title>Grüße</title>".encode()),
        ("text/html; charset=zlib", "<title>Grüße</title>".encode()),
        ("text/html; charset=rot13", "<title>Grüße</title>".encode()),
        ('application/xhtml+xml; charset="UTF-8"', '<?xml version="1.0"?><html><title>Grüße</title></html>'.encode()),
    ],
)
async def test_charsets(reader: Client, site: Site, content_type: str, body: bytes) -> None:
    status, found = await preview(reader, site.put("/page", body, content_type))

    assert status == 200
    assert found["og:title"].startswith("Gr")
    if b"koi8" not in body:
        assert found["og:title"] == "Grüße"


async def test_pages_are_asked_for_the_operators_languages(reader: Client, site: Site) -> None:
    await preview(reader, site.put("/page", "<title>x</title>"))

    [request] = site.requests
    assert request.headers["Accept-Language"] == "de, en;q=0.5"
    assert "Cookie" not in request.headers
    assert "Authorization" not in request.headers


async def test_the_old_paths_serve_it_too(reader: Client, site: Site) -> None:
    url = site.put("/page", "<title>x</title>")
    for version in ("v3", "r0"):
        assert (await reader.get(f"/_matrix/media/{version}/preview_url", url=url)).body == {"og:title": "x"}
    assert (await reader.anonymous().get("/v1/media/preview_url", url=url)).status == 401


# --- kept, and shared


@pytest.mark.one_process("each asks by itself")
async def test_a_page_is_asked_once(looking: Server, reader: Client, site: Site) -> None:
    gate, other = asyncio.Event(), await looking.register()

    async def slow(_request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return web.Response(text="<title>x</title>", content_type="text/html")

    site.pages["/slow"] = slow
    asking = [asyncio.ensure_future(preview(who, site.url("/slow"))) for who in (reader, other, reader)]
    while not site.asked("/slow"):  # noqa: ASYNC110  # of a server
        await asyncio.sleep(0.01)
    gate.set()

    assert [(await each).body for each in asking] == 3 * [{"og:title": "x"}]
    assert (await preview(other, site.url("/slow") + "#part")).body == {"og:title": "x"}
    assert site.asked("/slow") == 1


async def test_a_preview_is_made_anew_in_time_and_the_old_one_is_there_for_its_time(
    conninfo: str, connection: psycopg.Connection, site: Site
) -> None:
    async with running(conninfo, url_previews=URLPreviews(allowed_ranges=LOOPBACK)) as server:
        reader = await server.register()
        url = site.put("/page", "<title>old</title>")
        assert (await preview(reader, url)).body == {"og:title": "old"}
        connection.execute("update url_previews set fetched_ts = 1000, expires_ts = 2000")
        site.put("/page", "<title>new</title>")

        assert (await preview(reader, url)).body == {"og:title": "new"}
        assert (await preview(reader, url, ts=1500)).body == {"og:title": "old"}
        assert (await preview(reader, url, ts=1 << 52)).body == {"og:title": "new"}
        assert site.asked("/page") == 2


async def test_a_page_that_fails_is_not_asked_again_at_once(reader: Client, site: Site) -> None:
    for _ in range(2):
        assert (await preview(reader, site.url("/missing"))).status == 502
    assert site.asked("/missing") == 1


@pytest.mark.one_process("its clock is set here")
async def test_what_a_process_fetched_whose_clock_is_ahead_is_found(
    looking: Server, reader: Client, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = site.put("/page", "<title>x</title>")
    await preview(reader, url)
    clock = looking.application.database._clock
    monkeypatch.setattr(clock, "_ahead_ms", clock._ahead_ms - 10_000)

    assert (await preview(reader, url)).body == {"og:title": "x"}
    assert site.asked("/page") == 1


async def test_previews_are_limited(conninfo: str, site: Site) -> None:
    limits = RateLimits(previews=RateLimit(per_second=0.001, burst=2))
    url = site.put("/page", "<title>x</title>")
    async with running(conninfo, url_previews=URLPreviews(allowed_ranges=LOOPBACK), rate_limits=limits) as server:
        reader = await server.register()
        assert [(await preview(reader, url)).status for _ in range(3)] == [200, 200, 429]


# --- where requests may go


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "//x.test/", "ftp://x.test/", "file:///etc/passwd", "http://", "http://a:b@x.test/", "javascript:1"),
        *("http://x.test:99999/", "http://[::1", "http://" + "a" * 2000, "data:text/html,<title>x</title>"),
    ],
)
async def test_what_is_no_address_of_a_page_is_refused(reader: Client, url: str) -> None:
    status, error = await preview(reader, url)

    assert (status, error["errcode"]) == (400, "M_INVALID_PARAM" if url else "M_MISSING_PARAM")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])  # noqa: S104  # asked
async def test_private_addresses_are_not_asked(server: Server, alice: Client, site: Site, host: str) -> None:
    site.put("/page", "<title>secret</title>")

    status, error = await preview(alice, f"http://{host}:{site.port}/page")

    assert (status, error["errcode"]) == (502, "M_UNKNOWN")
    assert site.requests == []


async def test_a_redirect_or_an_image_leads_to_no_private_address(reader: Client, site: Site) -> None:
    inside = f"http://[::1]:{site.port}/"
    page = site.put("/page", f'<title>x</title><meta property="og:image" content="{inside}">')

    assert (await preview(reader, site.redirect("/redirect", inside))).status == 502
    assert (await preview(reader, page)).body == {"og:title": "x"}


async def test_denied_hosts_are_not_asked_even_by_a_redirect_or_an_image(reader: Client, site: Site) -> None:
    denied = f"http://127.0.0.66:{site.port}/"
    page = site.put("/page", f'<title>x</title><meta property="og:image" content="{denied}">')

    names = ("a.DENIED.test", "a.denied.test.", "méxico.test", "xn--mxico-bsa.test", "xn--kln-sna.test", "KÖLN.test")
    for url in (denied, *(f"https://{name}/" for name in names)):
        status, error = await preview(reader, url)
        assert (status, error["errcode"]) == (403, "M_FORBIDDEN")
    assert (await preview(reader, site.redirect("/redirect", denied))).status == 502
    assert (await preview(reader, page)).body == {"og:title": "x"}
    assert site.asked("/") == 0


async def test_redirects_are_followed_for_a_while(reader: Client, site: Site) -> None:
    site.put("/end", "<title>x</title>")
    assert (await preview(reader, site.redirect("/start", "end"))).body == {"og:title": "x"}
    assert (await preview(reader, site.redirect("/round", "/round"))).status == 502
    assert site.asked("/round") == url_previews.MAX_REDIRECTS + 1


async def test_where_previews_are_off_there_are_none(conninfo: str, site: Site) -> None:
    async with running(conninfo, url_previews=URLPreviews(enabled=False, allowed_ranges=LOOPBACK)) as server:
        reader = await server.register()
        status, error = await preview(reader, site.put("/page", "<title>x</title>"))

        assert (status, error["errcode"]) == (403, "M_FORBIDDEN")
        assert site.requests == []
        capabilities = (await reader.ok("GET", "/v3/capabilities"))["capabilities"]
        assert capabilities["io.element.msc4452.preview_url"] == {"enabled": False}


# --- hostile pages


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/html"})
    await response.prepare(request)
    await response.write(b"<title>x</title>")
    while True:
        await response.write(b"<p>" + b"x" * 65536)


async def silent(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/html"})
    await response.prepare(request)
    await response.write(b"<title>x</title>")
    await asyncio.sleep(60)
    return response


async def test_an_endless_page_is_read_at_its_beginning(reader: Client, site: Site) -> None:
    site.pages["/endless"] = endless

    assert (await preview(reader, site.url("/endless"))).body["og:title"] == "x"


@pytest.mark.one_process("its patience is shortened here")
async def test_a_page_that_stops_is_given_up(reader: Client, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_previews, "SECONDS", 0.5)
    site.pages["/silent"] = silent

    assert (await preview(reader, site.url("/silent"))).status == 502


async def test_a_page_that_unpacks_to_much_costs_little(reader: Client, site: Site) -> None:
    bomb = gzip.compress(b"<title>x</title>" + bytes(100_000_000), 6)
    url = site.put("/bomb", bomb, "text/html", Content_Encoding="gzip")

    async with asyncio.timeout(15):
        status, _ = await preview(reader, url)

    assert status in (200, 502)


HOSTILE = [
    *(300_000 * "<div>", 100_000 * "<a ", 100_000 * "<!--", 300_000 * "<", 300_000 * "&", 100_000 * '<a b="'),
    *("<script>" + 100_000 * "</scrip", 30_000 * "<table><tr><td>", "<meta " + 100_000 * "charset"),
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><title>&b;</title>',
    '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><title>&a;</title>',
    *("<title>\x00\ud800</title>", "<meta property='og:title' content='" + 1_000_000 * "x"),
]


async def test_a_hostile_page_is_read_or_not(reader: Client, site: Site) -> None:
    urls = [site.put(f"/{number}", page.encode("utf-8", "surrogatepass")) for number, page in enumerate(HOSTILE)]

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(preview(reader, url) for url in urls))

    for page, (status, body) in zip(HOSTILE, answers, strict=True):
        assert status in (200, 502), page[:50]
        assert "root:" not in str(body)
        assert len(str(body)) < 10_000


async def test_an_image_that_is_none_or_too_large_is_left_out(reader: Client, site: Site) -> None:
    wrong = [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", a_picture()[:20], b"<html>"]
    wrong.append(a_picture((9000, 9000)))
    for number, picture in enumerate(wrong):
        site.put(f"/image{number}", picture, "image/png")
        site.put(f"/{number}", f'<title>x</title><meta property="og:image" content="/image{number}">')

    pages = await asyncio.gather(*(preview(reader, site.url(f"/{number}")) for number in range(len(wrong))))
    images = await asyncio.gather(*(preview(reader, site.url(f"/image{number}")) for number in range(len(wrong))))

    assert [page.body for page in pages] == len(wrong) * [{"og:title": "x"}]
    assert [image.status for image in images] == len(wrong) * [502]


@pytest.mark.parametrize("image", ["data:image/png;base64,iVBORw0KGgo=", "javascript:1", "http://", "  ", "//["])
async def test_an_image_without_an_address_is_left_out(reader: Client, site: Site, image: str) -> None:
    page = site.put("/page", f'<title>x</title><meta property="og:image" content="{image}">')

    assert (await preview(reader, page)).body == {"og:title": "x"}


async def test_the_event_loop_is_not_held_up(looking: Server, reader: Client, site: Site) -> None:
    site.put("/a.jpg", a_picture((2000, 1500), "JPEG"), "image/jpeg")
    text = "<p>" + 100 * "words and words " + "</p>"
    pages = [
        site.put(f"/{n}", f'<title>{n}</title><meta property="og:image" content="/a.jpg">' + 500 * text)
        for n in range(4)
    ]
    await preview(reader, site.put("/first", "<title>x</title>"))  # opens the client's connections
    turns: list[float] = []  # what each cost the loop's thread, whatever else the machine does meanwhile

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.005)
            turns.append(time.thread_time() - before)

    watching = asyncio.ensure_future(watch())
    try:
        answers = await asyncio.gather(*(preview(reader, page) for page in pages))
        for answer in answers:
            path = answer.body["og:image"].removeprefix("mxc://")
            assert (await reader.get(f"/v1/media/thumbnail/{path}", width=320, height=240)).status == 200
    finally:
        watching.cancel()

    assert max(turns) < 0.05 * slowness()


@pytest.mark.parametrize(
    "page",
    [
        b"<h1><div>" * 100 + b"<i></i>" * 100_000,
        b'<meta charset="punycode">' + b"a" * 500_000 + b"-" + b"zzzz" * 90_000,
    ],
)
async def test_pages_that_are_made_to_take_long_do_not(reader: Client, site: Site, page: bytes) -> None:
    assert (await preview(reader, site.put("/slow", page, "text/html"))).status == 200


@pytest.mark.one_process("each process fetches so many")
async def test_who_names_slow_pages_holds_up_themselves(looking: Server, reader: Client, site: Site) -> None:
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slowly(_request: web.Request) -> web.StreamResponse:
        is_asked.set()
        await may_answer.wait()
        return web.Response(text="<title>late</title>", content_type="text/html")

    slow = [site.url(f"/slow{number}") for number in range(12)]
    site.pages.update({f"/slow{number}": slowly for number in range(12)})
    waiting = [asyncio.ensure_future(preview(reader, url)) for url in slow]
    await is_asked.wait()
    other = await preview(await looking.register(), site.put("/fast", "<title>fast</title>"))

    assert (other.status, other.body["og:title"]) == (200, "fast")
    may_answer.set()
    assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}


async def test_so_many_answers_are_kept(
    looking: Server, reader: Client, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await preview(reader, site.put(f"/kept{number}", f"<title>{number}</title>"))
    monkeypatch.setattr(url_previews, "MAX_KEPT", 2)
    await looking.application.media.previews.forget_old()

    async with looking.application.database.read() as tx:
        assert await tx.fetch("select count(*) from url_previews") == [(2,)]
