"""How a user's rooms stand to the token of a sync: joined all along, joined anew, invited, left."""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from federation.rooms.incomplete_rooms import IncompleteRooms
from homeserver.services.sync_filter import SyncFilter
from homeserver.services.user_views import Member, UserView, UserViews
from homeserver.tokens import StreamToken
from storage import memberships
from storage.database import Database
from storage.memberships import Membership

DEFAULT_LIMIT = 10
MAX_LIMIT = 100


class RoomsRequest(Struct, frozen=True, kw_only=True):
    """What of a sync request matters to its rooms."""

    since: StreamToken | None
    filter: SyncFilter
    device: int | None
    full_state: bool
    use_state_after: bool
    is_msc4222: bool

    @property
    def lazy_members(self) -> bool:
        """Whether member events come only with what their users sent."""
        return self.filter.state.lazy_load_members

    @property
    def limit(self) -> int:
        """How many events of each timeline."""
        wanted = self.filter.timeline.limit
        return DEFAULT_LIMIT if wanted is None else min(wanted, MAX_LIMIT)

    @property
    def state_name(self) -> str:
        """Under which name state is told."""
        if not self.use_state_after:
            return "state"
        return "org.matrix.msc4222.state_after" if self.is_msc4222 else "state_after"


class SortedRooms(Struct):
    """The user's rooms, by how they stand to the token."""

    continuing: list[int] = field(default_factory=list)
    """Joined then and ever since."""
    entered: list[int] = field(default_factory=list)
    """Joined since then, or of which a first sync tells."""
    whole: list[int] = field(default_factory=list)
    """Joined all along, whose whole state is asked for."""
    invited: list[int] = field(default_factory=list)
    knocked: list[int] = field(default_factory=list)
    left: list[tuple[int, Member]] = field(default_factory=list)

    @property
    def joined(self) -> list[int]:
        """All that the user is in."""
        return [*self.continuing, *self.entered, *self.whole]


class RoomSorter:
    """Sorts rooms."""

    def __init__(self, database: Database, views: UserViews, incomplete: IncompleteRooms) -> None:
        self._database = database
        self._views = views
        self._incomplete = incomplete

    async def sort(self, request: RoomsRequest, view: UserView, members: Mapping[int, Member]) -> SortedRooms:
        """Sort the user's rooms, `members`, as they were when the sync looked at the log.

        A room that lacks members is only for who loads these lazily; once it has them everybody enters it, with all.
        """
        found = SortedRooms()
        since = None if request.since is None else request.since.position
        unsure: list[int] = []
        completed = set() if since is None else self._incomplete.completed_since(members, since)
        for room, member in (await self._allowed(request, members)).items():
            is_new = since is None or member.position > since
            if member.membership is Membership.JOIN and self._incomplete.has(room) and not request.lazy_members:
                continue
            if member.membership is Membership.JOIN and room in completed:
                found.entered.append(room)
            elif member.membership is Membership.JOIN:
                (found.entered if since is None else unsure if is_new else found.continuing).append(room)
            elif is_new and member.membership is Membership.INVITE:
                found.invited.append(room)
            elif is_new and member.membership is Membership.KNOCK:
                found.knocked.append(room)
            elif is_new and since is not None:
                found.left.append((room, member))
        if since is None and request.filter.include_leave:
            await self._add_left(request, view, found)
        elif since is not None and since < view.listener.known_from:
            await self._add_left_before(request, view, since, found, members)
        if unsure and since is not None:
            await self._sort_unsure(view, unsure, since, found)
        if since is not None and request.full_state:
            found.whole, found.continuing = found.continuing, []
        return found

    async def _allowed(self, request: RoomsRequest, members: Mapping[int, Member]) -> Mapping[int, Member]:
        """The rooms that the filter lets through."""
        if request.filter.rooms is None and not request.filter.not_rooms:
            return members
        known = await self._views.rooms_by_number(list(members))
        return {
            room: member
            for room, member in members.items()
            if room in known and request.filter.allows_room(known[room].room_id)
        }

    async def _sort_unsure(self, view: UserView, unsure: Sequence[int], since: int, found: SortedRooms) -> None:
        """A member event after the token may be a join, or a new display name."""
        async with self._database.read() as tx:
            kept = await memberships.joined_throughout(tx, view.user_id, unsure, since)
        for room in unsure:
            (found.continuing if room in kept else found.entered).append(room)

    async def _add_left(self, request: RoomsRequest, view: UserView, found: SortedRooms) -> None:
        """All rooms that the user ever left and did not forget."""
        async with self._database.read() as tx:
            left = await memberships.rooms_of(tx, view.user_id, (Membership.LEAVE, Membership.BAN))
            forgotten = await memberships.forgotten(tx, view.user_id)
        await self._add(request, found, {room: Member(*left[room]) for room in left if room not in forgotten})

    async def _add_left_before(
        self, request: RoomsRequest, view: UserView, since: int, found: SortedRooms, members: Mapping[int, Member]
    ) -> None:
        """Rooms that were left before this process began to follow the user; forgotten or not, it is news."""
        async with self._database.read() as tx:
            left = await memberships.rooms_of(tx, view.user_id, (Membership.LEAVE, Membership.BAN))
        gone = {room: Member(*left[room]) for room in left if left[room][1] > since and room not in members}
        await self._add(request, found, gone)

    async def _add(self, request: RoomsRequest, found: SortedRooms, left: Mapping[int, Member]) -> None:
        found.left.extend((await self._allowed(request, left)).items())
