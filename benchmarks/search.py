"""Searching many messages: `python -m benchmarks.search --messages 1000000`.

Hearth alone, on a cluster of its own. Messages are written into its table of events, as many a room as a Zipf
distribution says: two thirds of words between spaces, a sixth each of Chinese and of Japanese characters, drawn from a
seeded generator with the frequencies that words have. Hearth then makes its index as it does after an update, and is
asked over HTTP. What is printed: what the index takes, and how long an answer does.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import psycopg

from benchmarks.cluster import Cluster
from benchmarks.hearth import Hearth
from benchmarks.matrix import User
from benchmarks.server import PREPARED
from storage.event_bytes import pack
from storage.strings import WELL_KNOWN

ROOMS = 300
REPEATED = 20
_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
_KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"

TERMS = {
    "a word of two thirds of all messages": "the",
    "two words of many messages": "the meeting",
    "two words of many that no message has both of": "onlyodd onlyeven",
    "a word of five messages, the oldest first": "xylophonist",
    "a word that there is not": "nowhere2be3found",
    "Chinese: a character of many messages": "的",
    "Chinese: a phrase of five messages": "天安门广场",
    "Chinese: two frequent characters that seldom meet": "是不",
    "Japanese: a frequent pair": "です",
    "Japanese: a phrase of five messages": "東京タワー",
}


class _Vocabulary:
    """Words, the first of which are the most frequent, as Zipf and Mandelbrot found."""

    def __init__(self, chance: random.Random, words: Sequence[str]) -> None:
        self._chance = chance
        self._words = words
        self._weights = list(itertools.accumulate((rank + 2.7) ** -1.07 for rank in range(len(words))))

    def some(self, low: int, high: int) -> list[str]:
        """So many of them."""
        return self._chance.choices(self._words, cum_weights=self._weights, k=self._chance.randint(low, high))


class Texts:
    """Messages, each time the same ones."""

    def __init__(self) -> None:
        self._random = chance = random.Random(1)
        made = ("".join(each) for count in (2, 3, 4) for each in itertools.product(_SYLLABLES, repeat=count))
        words = ["meeting", "and", "of", "to", "you", "please", "tomorrow", *itertools.islice(made, 60_000)]
        self._english = _Vocabulary(chance, words)
        han = "".join(chr(0x4E00 + 7 * number) for number in range(2_500))
        pairs = dict.fromkeys("".join(chance.choices(han, k=chance.choice((1, 2, 2, 2, 3)))) for _ in range(30_000))
        self._chinese = _Vocabulary(chance, ["的", "是", "不", "了", "我们", *pairs])
        kana = dict.fromkeys("".join(chance.choices(_KANA, k=chance.randint(1, 4))) for _ in range(20_000))
        mixed = [word for both in zip(kana, pairs, strict=False) for word in both]
        self._japanese = _Vocabulary(chance, ["は", "を", "の", "に", *mixed])

    def make(self, number: int, count: int) -> str:
        """The text of one message of so many."""
        chance, step = self._random, count // 5 or 1
        kind = number % 6
        if kind == 0:
            return "".join(self._chinese.some(3, 20)) + ("天安门广场" if number % step < 6 else "")
        if kind == 1:
            ending = chance.choice(("です", "ました", "ますか"))
            return "".join(self._japanese.some(3, 16)) + ending + ("東京タワー" if number % step < 6 else "")
        words = self._english.some(2, 18)
        words.append("the" if chance.random() < 0.9 else "onlyodd" if number % 2 else "onlyeven")
        if kind == 2 and number % step < 6:
            words.append("xylophonist")
        return " ".join(words)


def fill(conninfo: str, room_ids: Sequence[str], sender: str, count: int) -> None:
    """Write messages behind what stands in these rooms."""
    chance, texts = random.Random(2), Texts()
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(room_ids))))
    with psycopg.connect(conninfo) as connection:
        rooms: dict[str, tuple[int, int]] = {
            room_id: (room, version)
            for room_id, room, version in connection.execute("select room_id, room, state_version from rooms")
        }
        found = connection.execute(
            "select position, strings.id from log_head, strings where value = %s", (sender,)
        ).fetchone()
        assert found is not None
        position, number_of_sender = found

        def rows() -> Iterator[tuple[object, ...]]:
            for number in range(count):
                (room_id,) = chance.choices(room_ids, cum_weights=weights)
                room, version = rooms[room_id]
                event = {
                    "type": "m.room.message",
                    "sender": sender,
                    "room_id": room_id,
                    "content": {"msgtype": "m.text", "body": texts.make(number, count)},
                    "origin_server_ts": 1_700_000_000_000 + 1_000 * number,
                }
                yield (
                    *(position + 1 + number, event["origin_server_ts"], room, 0, version, version),
                    *(
                        WELL_KNOWN["m.room.message"],
                        number_of_sender,
                        0,
                        0,
                        0,
                        f"$bench{number}",
                        pack(orjson.dumps(event)),
                    ),
                )

        with (
            connection.cursor() as cursor,
            cursor.copy(
                "copy events (position, origin_server_ts, room, line, version, trunk_version, type, sender,"
                " notify_total, highlight_total, flags, event_id, json) from stdin"
            ) as copy,
        ):
            for row in rows():
                copy.write_row(row)
        connection.execute("update log_head set position = position + %s", (count,))
        connection.execute("truncate search_messages, search_bands, search_backlog, index_versions")
        connection.execute("delete from followers")


async def until_indexed(conninfo: str) -> float:
    """Wait for the index; the seconds that took."""
    began = time.monotonic()
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        while True:
            cursor = await connection.execute(
                "select exists (select from index_versions where name = 'search')"
                " and not exists (select from search_backlog)"
            )
            row = await cursor.fetchone()
            if row is not None and row[0]:
                return time.monotonic() - began
            await asyncio.sleep(0.2)


async def ask(user: User, term: str, order: str) -> tuple[list[float], int, int]:
    """Milliseconds of each answer; results on the page, and how many there are said to be."""
    body = {"search_categories": {"room_events": {"search_term": term, "order_by": order}}}
    took: list[float] = []
    answer: Any = None
    for _ in range(REPEATED):
        began = time.perf_counter()
        answer = (await user.request("POST", "/v3/search", body))["search_categories"]["room_events"]
        took.append(1000 * (time.perf_counter() - began))
    return took, len(answer["results"]), answer["count"]


async def run(count: int) -> None:
    """All of it."""
    with Cluster() as cluster:
        cluster.create_database(PREPARED)
        server = Hearth(cluster)
        conninfo = cluster.conninfo(PREPARED)
        try:
            await server.start()
            everywhere, somewhere, once = await server.add_users(3)
            room_ids = [await everywhere.create_room() for _ in range(ROOMS)]
            for room_id in room_ids[5:45]:
                await somewhere.join(room_id)
            await once.join(room_ids[-1])
            await server.stop()
            began = time.monotonic()
            fill(conninfo, room_ids, everywhere.user_id, count)
            print(f"{count:,} messages in {ROOMS} rooms, written in {time.monotonic() - began:.0f} s", flush=True)
            await server.start()
            seconds = await until_indexed(conninfo)
            sizes = cluster.relation_bytes(PREPARED)
            with psycopg.connect(conninfo, autocommit=True) as connection:
                connection.execute("vacuum analyze search_messages")
            of_index = {name: size for name, size in sizes.items() if name.startswith("search_")}
            of_events = sum(size for name, size in sizes.items() if name.startswith("events"))
            print(f"indexed in {seconds:.0f} s, half of which it rests")
            print(
                f"the index: {sum(of_index.values()) / count:.0f} bytes a message,"
                f" beside {of_events / count:.0f} of events"
            )
            for name, size in sorted(of_index.items(), key=lambda pair: -pair[1])[:3]:
                print(f"  {name}: {size / count:.1f}")
            readers = ((f"in {ROOMS} rooms", everywhere), ("in 40 rooms", somewhere), ("in one quiet room", once))
            worst = 0.0
            for name, user in readers:
                print(f"a user {name}:  (median and slowest of {REPEATED}, ms; results of how many)")
                for what, term in TERMS.items():
                    for order in ("recent", "rank"):
                        took, shown, said = await ask(user, term, order)
                        worst = max(worst, *took)
                        print(
                            f"  {order:6} {what:55} {statistics.median(took):7.1f} {max(took):7.1f}"
                            f"   {shown} of {said:,}",
                            flush=True,
                        )
            print(f"the slowest of all: {worst:.1f} ms")
        finally:
            await server.stop()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    asyncio.run(run(parser.parse_args().messages))


if __name__ == "__main__":
    main()
