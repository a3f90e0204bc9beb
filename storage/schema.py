"""Every table (SQLAlchemy Core). Migrations are held to this file by a test.

Rooms, events and hot strings have integer ids; every room table's key leads with the room, so that a room can be
purged by bounded range deletes. `position` is a place in the log (`storage/log.py`); an event's position is also
what other tables call it by. Accounts, devices and keys are cold: they use the specification's own identifiers.
Room tables name no foreign key: checking one would cost every event a look-up, and lock its room's row.
One file, however long: it is a list to look a table up in, and nothing but migrations and their test imports it.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, ExcludeConstraint

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

# --- the log -------------------------------------------------------------------------------------------------

log_head = Table(
    "log_head",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column("listeners", ARRAY(Integer), nullable=False, server_default="{}"),
    comment="One row: the newest position, and the backends by which processes listen for batches (`storage/bus.py`)."
    " Its row lock is the log's lock: who holds it appends.",
)

invalidations = Table(
    "invalidations",
    metadata,
    Column("kind", SmallInteger, primary_key=True, autoincrement=False),
    Column("user_id", Text, primary_key=True),
    Column("detail", Text, primary_key=True),
    Column("position", BigInteger, nullable=False, comment="Of the newest such entry: it stands for all before it."),
    Index("invalidations_position_idx", "position"),
    comment="Entries that carry no data of their own: what a process must forget or look up again.",
)

followers = Table(
    "followers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("process", Text, comment="Who runs it, for as long as its lease is valid."),
    comment="Consumers of the log: each was told of all that stands there up to `position` (storage/followers.py).",
)

follower_processes = Table(
    "follower_processes",
    metadata,
    Column("process", Text, primary_key=True),
    Column("expires_ts", BigInteger, nullable=False),
    prefixes=["UNLOGGED"],
    comment="Leases: the processes that run followers.",
)

# --- rooms and their events ----------------------------------------------------------------------------------

strings = Table(
    "strings",
    metadata,
    Column("id", Integer, Identity(start=1000), primary_key=True),
    Column("value", Text, nullable=False, unique=True),
    Index(
        "strings_server_idx",
        text("substr(value, strpos(value, ':') + 1)"),
        postgresql_where=text("left(value, 1) = '@'"),
    ),
    comment="Event types, state keys and user IDs as integers; those below 1000 are named in storage/strings.py.",
)

rooms = Table(
    "rooms",
    metadata,
    Column("room", Integer, Identity(), primary_key=True),
    Column("room_id", Text, nullable=False, unique=True),
    Column("room_version", Text, nullable=False),
    Column("state_version", Integer, nullable=False, server_default=text("0")),
    Column("extremities", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("last_line", Integer, nullable=False, server_default=text("0")),
    Column("notify_total", Integer, nullable=False, server_default=text("0")),
    Column("highlight_total", Integer, nullable=False, server_default=text("0")),
    Column("joined_members", Integer, nullable=False, server_default=text("0")),
    Column("invited_members", Integer, nullable=False, server_default=text("0")),
    Column("completed_at", BigInteger, comment="Position of members that a join left out; 0 while they are awaited."),
    Column("last_event", BigInteger, nullable=False, server_default=text("0"), comment="The newest that is shown."),
    Column("last_bump", BigInteger, nullable=False, server_default=text("0"), comment="The newest that people sent."),
    Index("rooms_incomplete_idx", "room", postgresql_where=text("completed_at = 0")),
    postgresql_with={"fillfactor": "50"},
    comment="Counts and extremities change with every event: room on the page keeps those updates in place.",
)

events = Table(
    "events",
    metadata,
    # Eight-byte columns first, then four: no padding.
    Column("position", BigInteger, nullable=False),
    Column("origin_server_ts", BigInteger, nullable=False),
    Column("redacted_by", BigInteger),
    Column("place", BigInteger, comment="In the order of the room's events, where that is not its position."),
    Column("arrival", BigInteger, comment="When it came, as a place in the log, where that is not its position."),
    Column("room", Integer, nullable=False),
    Column("line", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("trunk_version", Integer, nullable=False),
    Column("type", Integer, nullable=False),
    Column("sender", Integer, nullable=False),
    Column("state_key", Integer),
    Column("after_line", Integer),
    Column("after_version", Integer),
    Column("notify_total", Integer, nullable=False),
    Column("highlight_total", Integer, nullable=False),
    Column("device", Integer),
    Column("flags", SmallInteger, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("thread", Text),
    Column("txn_id", Text),
    Column("json", LargeBinary, nullable=False),
    PrimaryKeyConstraint("room", "position"),
    ExcludeConstraint(("event_id", "="), using="hash", name="events_event_id_excl"),
    Index("events_position_idx", "position"),
    Index("events_room_origin_server_ts_idx", "room", "origin_server_ts"),
    Index(
        "events_transaction_key",
        "device",
        "txn_id",
        "room",
        "type",
        unique=True,
        postgresql_where=text("txn_id is not null"),
    ),
    Index("events_thread_idx", "room", "thread", "position", postgresql_where=text("thread is not null")),
    Index("events_place_idx", "room", "place", postgresql_where=text("place is not null")),
    comment="Verified PDUs (json: see event_bytes.py). (line, version) is the state before the event.",
)

room_lines = Table(
    "room_lines",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("line", Integer, primary_key=True),
    Column("parent_line", Integer),
    Column("parent_version", Integer),
    Column("version", Integer, nullable=False),
    comment="Branches of a room's state: what differs from a version of the parent line (none: a whole state).",
)

room_state = Table(
    "room_state",
    metadata,
    Column("event", BigInteger, comment="Null where the line takes an entry of its parent away."),
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("line", Integer, primary_key=True),
    Column("since_version", Integer, primary_key=True),
    Column("type", Integer, primary_key=True),
    Column("state_key", Integer, primary_key=True),
    Column("until_version", Integer),
    Column("membership", SmallInteger),
    Index("room_state_history_idx", "room", "type", "state_key", "line", "since_version"),
    Index(
        "room_state_current_key",
        "room",
        "type",
        "state_key",
        unique=True,
        postgresql_where=text("line = 0 and until_version is null"),
    ),
    Index(
        "room_state_member_idx",
        "state_key",
        postgresql_where=text("line = 0 and until_version is null and membership is not null"),
    ),
    comment="Each state change once, with the versions of its line between which it was current.",
)

missing_events = Table(
    "missing_events",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("event_id", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    comment="Backward extremities: events that `position` refers to and that we do not hold.",
)

remote_joins = Table(
    "remote_joins",
    metadata,
    Column("room_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("content", LargeBinary, nullable=False, comment="What the join event is to hold, as JSON."),
    Column("servers", ARRAY(Text), nullable=False, comment="Whom to ask, in this order."),
    Column("started_ts", BigInteger, nullable=False),
    Column("leased_until_ts", BigInteger, nullable=False, comment="Until then a process is at work on it."),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("destination", Text, comment="Whom the join event was sent to, if it was."),
    Column("room_version", Text),
    Column("event", LargeBinary, comment="The signed join event, once it may have been sent."),
    Column("received", Integer, nullable=False, server_default=text("0"), comment="Events of the state, so far."),
    Column("placed_version", Integer, comment="Of the state before the join, once that counts without all members."),
    Column("servers_in_room", ARRAY(Text), comment="As of then: some of their users may not be known yet."),
    Column("state_ids", ARRAY(Text), comment="The events of the state before the join, members and all."),
    Column("counted", ARRAY(Integer), comment="Who was counted as joined and as invited when it was placed."),
    comment="Joins by way of other servers that are under way, or were when the server died.",
)

room_completeness = Table(
    "room_completeness",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("room", Integer, nullable=False, index=True),
    Column("is_complete", Boolean, nullable=False),
    Column("users", ARRAY(Text), nullable=False, comment="Of ours, whose membership there was not known before."),
    comment="When rooms came to lack members, and when those were here (storage/room_completeness.py).",
)

history_gaps = Table(
    "history_gaps",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, comment="Of the event that came without what precedes it."),
    Column("low", BigInteger, nullable=False, comment="Places after this one, before `bottom`, are free."),
    Column("bottom", BigInteger, nullable=False, comment="The oldest event that is known above the gap."),
    Column("is_first", Boolean, nullable=False, comment="Nothing of the room stands below."),
    Column("frontier", ARRAY(Text), nullable=False, comment="What to ask for next; empty once the gap is filled."),
    comment="Room for history that is fetched later, in its place (storage/history.py).",
)

pending_redactions = Table(
    "pending_redactions",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("event_id", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("only_of", Text, comment="A server: the redaction applies to its users' events alone."),
    comment="Redactions whose target we do not hold yet.",
)

read_marks = Table(
    "read_marks",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("room", Integer, nullable=False),
    Column("notify_total", Integer, nullable=False),
    Column("highlight_total", Integer, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("thread", Text, nullable=False),
    PrimaryKeyConstraint("user_id", "room", "thread"),
    comment="Up to where a local user has read: a thread's root, 'main', or '' for the room regardless of threads.",
)

threads = Table(
    "threads",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("thread", Text, primary_key=True),
    Column("last_position", BigInteger, nullable=False),
    Column("notify_total", Integer, nullable=False),
    Column("highlight_total", Integer, nullable=False),
    comment="Running counts of each thread.",
)

notifications = Table(
    "notifications",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("room", Integer, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("notify", SmallInteger, nullable=False),
    Column("highlight", SmallInteger, nullable=False),
    Column("thread", Text, nullable=False),
    PrimaryKeyConstraint("room", "user_id", "position"),
    Index("notifications_position_idx", "position"),
    Index("notifications_user_id_position_idx", "user_id", "position"),
    comment="Where one user's count differs from what the room counts for everybody: mentions and own rules.",
)

forgotten_rooms = Table(
    "forgotten_rooms",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    comment="Rooms that a user left and asked to forget, with the position of the leave.",
)

outside_memberships = Table(
    "outside_memberships",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("membership", SmallInteger, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("room_id", Text, nullable=False),
    Column("room_version", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("json", LargeBinary, nullable=False),
    Column("stripped_state", LargeBinary, nullable=False),
    Column("via", ARRAY(Text), nullable=False),
    PrimaryKeyConstraint("user_id", "room_id"),
    Index("outside_memberships_position_idx", "position"),
    comment="Invites to, and knocks at, rooms that this server is not in.",
)

relations = Table(
    "relations",
    metadata,
    Column("place", BigInteger, nullable=False, comment="Where the event stands that relates to `parent`."),
    Column("position", BigInteger, comment="Of that event, where that is not its place."),
    Column("edited_ts", BigInteger, comment="`origin_server_ts` of an edit that may replace something."),
    Column("room", Integer, nullable=False),
    Column("type", Integer, nullable=False, comment="`rel_type`, as a number of `strings`."),
    Column("sender", Integer, nullable=False),
    Column("event_type", Integer, nullable=False),
    Column("parent", Text, nullable=False, comment="The event related to, held or not."),
    Column("key", Text, comment="Of an annotation."),
    PrimaryKeyConstraint("room", "parent", "type", "place"),
    Index(
        "relations_edits_idx",
        *("room", "parent", "sender", "event_type", "edited_ts"),
        postgresql_where=text("edited_ts is not null"),
    ),
    Index("relations_threads_idx", "room", "parent", "sender", postgresql_where=text("type = 23")),
    comment="What events say that they relate to, as long as they are neither hidden nor redacted.",
)

search_messages = Table(
    "search_messages",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("edit", BigInteger, comment="Where the edit stands whose words these are."),
    Column("room", Integer, nullable=False),
    Column("words", ARRAY(Integer), nullable=False, comment="Numbers of words, with those of the band before them."),
    # What was written last is looked through as a list: a little of it, or searches would feel it.
    Index(
        "search_messages_words_idx",
        "words",
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": "256"},
    ),
    comment="What events are found by (storage/search_index.py).",
)

search_titles = Table(
    "search_titles",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("room", Integer, nullable=False),
    PrimaryKeyConstraint("room", "position"),
    comment="Names and topics of rooms.",
)

search_bands = Table(
    "search_bands",
    metadata,
    Column("band", Integer, Identity(), primary_key=True),
    Column("low", BigInteger, nullable=False),
    Column("high", BigInteger, nullable=False, comment="Positions: the first and the last that it may hold."),
    Column("messages", Integer, nullable=False, comment="As many were written to it."),
    Column("kind", SmallInteger, nullable=False),
    Index("search_bands_kind_band_idx", "kind", "band"),
    comment="Parts of the index that are looked through one after the other.",
)

search_backlog = Table(
    "search_backlog",
    metadata,
    Column("high", BigInteger, primary_key=True, autoincrement=False),
    Column("low", BigInteger, nullable=False),
    Column("room", Integer, primary_key=True, autoincrement=False, comment="0 for all rooms."),
    comment="Positions, after `low` up to `high`, whose events are still to be indexed.",
)

index_versions = Table(
    "index_versions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, nullable=False, comment="How its rows are made: if that changes, all are made anew."),
    comment="The indexes that followers keep, as far as there are any.",
)

directory_users = Table(
    "directory_users",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False, comment="Of the user ID, in `strings`."),
    Column("display_name", Text),
    Column("avatar_url", Text),
    Column("words", Text, nullable=False, comment="Folded, with a space before each."),
    comment="Everybody who is in a room or a user of ours (storage/user_directory.py).",
)

directory_words = Table(
    "directory_words",
    metadata,
    Column("number", Integer, nullable=False),
    Column("is_public", Boolean, nullable=False, comment="Whether the user is in a public room."),
    Column("word", Text(collation="C"), nullable=False),
    PrimaryKeyConstraint("is_public", "word", "number"),
    Index("directory_words_number_idx", "number"),
    comment="The words of those who are in public rooms, and of users of ours.",
)

directory_rooms = Table(
    "directory_rooms",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False),
    comment="Rooms that everybody may join, or read: their members may be found by everybody.",
)

directory_backlog = Table(
    "directory_backlog",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False, comment="0 for all users of ours."),
    Column("after", Integer, nullable=False, comment="Members up to this number were looked at; -1: nothing was."),
    comment="Rooms whose members are still to be looked at for the user directory.",
)

thread_subscriptions = Table(
    "thread_subscriptions",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("room", Integer, nullable=False),
    Column("is_subscribed", Boolean, nullable=False),
    Column("is_automatic", Boolean, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("thread", Text, nullable=False),
    PrimaryKeyConstraint("user_id", "room", "thread"),
    Index("thread_subscriptions_position_idx", "position"),
    Index("thread_subscriptions_user_id_position_idx", "user_id", "position"),
    comment="Threads, by their roots, that users follow or no longer do.",
)

room_aliases = Table(
    "room_aliases",
    metadata,
    Column("alias", Text, primary_key=True),
    Column("room_id", Text, nullable=False, comment="Maybe of a room that this server does not know."),
    Column("creator", Text, nullable=False),
    Column("created_ts", BigInteger, nullable=False),
    Index("room_aliases_room_id_idx", "room_id"),
    comment="Room aliases of this server.",
)

delayed_events = Table(
    "delayed_events",
    metadata,
    Column("delay_id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("room_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("state_key", Text),
    Column("content", LargeBinary, nullable=False),
    Column("delay_ms", BigInteger, nullable=False),
    Column("running_since_ts", BigInteger, nullable=False),
    Index("delayed_events_user_id_idx", "user_id"),
    Index("delayed_events_due_idx", text("(running_since_ts + delay_ms)")),
    comment="Events that are sent when their delay is over (MSC4140).",
)

published_rooms = Table(
    "published_rooms",
    metadata,
    Column("room", Integer, primary_key=True, autoincrement=False),
    Column("network", Text, primary_key=True, comment="Empty, or an application service and its network."),
    comment="Rooms in the published room directory.",
)

# --- accounts and devices ------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("password_hash", Text),
    Column("application_service", Text),
    Column("created_ts", BigInteger, nullable=False),
    Column("deactivated_ts", BigInteger),
    Column("is_admin", Boolean, nullable=False, server_default=false()),
    Column("is_guest", Boolean, nullable=False, server_default=false()),
    Column("is_locked", Boolean, nullable=False, server_default=false()),
    Column("is_suspended", Boolean, nullable=False, server_default=false()),
    Column("is_erased", Boolean, nullable=False, server_default=false()),
    Index("users_created_ts_idx", "created_ts"),
    comment="Local accounts. A row is never deleted: a user ID is never given twice.",
)

devices = Table(
    "devices",
    metadata,
    Column("device", Integer, Identity(), primary_key=True),
    Column("user_id", Text, ForeignKey("users.user_id"), nullable=False),
    Column("device_id", Text, nullable=False),
    Column("display_name", Text),
    Column("created_ts", BigInteger, nullable=False),
    Column("last_seen_ts", BigInteger),
    Column("last_seen_ip", Text),
    Column("last_seen_user_agent", Text),
    UniqueConstraint("user_id", "device_id"),
    comment="Devices of local users. `device` is never given twice, so what refers to a deleted one finds nothing.",
)

sessions = Table(
    "sessions",
    metadata,
    Column("session", BigInteger, Identity(), primary_key=True),
    Column("device", Integer, ForeignKey("devices.device", ondelete="cascade"), nullable=False),
    Column("previous", BigInteger, comment="The pair that this one was given for, until this one is used."),
    Column("created_ts", BigInteger, nullable=False),
    Column("expires_ts", BigInteger),
    Column("access_hash", LargeBinary, nullable=False, unique=True),
    Column("refresh_hash", LargeBinary, unique=True),
    Index("sessions_device_idx", "device"),
    Index("sessions_previous_idx", "previous", postgresql_where=text("previous is not null")),
    comment="Access tokens with their refresh tokens, as SHA-256 hashes.",
)

interactive_auth_sessions = Table(
    "interactive_auth_sessions",
    metadata,
    Column("session_hash", LargeBinary, primary_key=True),
    Column("expires_ts", BigInteger, nullable=False),
    Column("operation", Text, nullable=False, comment="Method, path and user: what the session may authorise."),
    Column("body_hash", LargeBinary, nullable=False, comment="Keyed with the session ID, which is not stored."),
    Column("body", LargeBinary, comment="Encrypted with the session ID."),
    Column("completed", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("proofs", JSONB, nullable=False, comment="By stage what it proved, where that is of use afterwards."),
    Index("interactive_auth_sessions_expires_ts_idx", "expires_ts"),
    comment="User-interactive authentication in progress.",
)

short_lived_tokens = Table(
    "short_lived_tokens",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("expires_ts", BigInteger, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("user_id", Text, ForeignKey("users.user_id"), nullable=False),
    Index("short_lived_tokens_expires_ts_idx", "expires_ts"),
    Index("short_lived_tokens_user_id_idx", "user_id"),
    comment="Login tokens and OpenID tokens.",
)

identifiers = Table(
    "identifiers",
    metadata,
    Column("medium", Text, primary_key=True),
    Column("address", Text, primary_key=True, comment="In the form in which such are compared."),
    Column("user_id", Text, ForeignKey("users.user_id"), nullable=False),
    Column("validated_ts", BigInteger, nullable=False),
    Column("added_ts", BigInteger, nullable=False),
    Index("identifiers_user_id_idx", "user_id"),
    comment="Third-party identifiers of accounts: each is one account's.",
)

identifier_validations = Table(
    "identifier_validations",
    metadata,
    Column("sid", Text, primary_key=True),
    Column("secret_hash", LargeBinary, nullable=False, comment="Of the client's secret."),
    Column("purpose", Text, nullable=False),
    Column("medium", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("send_attempt", BigInteger, nullable=False),
    Column("next_link", Text),
    Column("token_hashes", ARRAY(LargeBinary), nullable=False, comment="Of what was sent; none, if it proves nothing."),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("expires_ts", BigInteger, nullable=False),
    Column("validated_ts", BigInteger),
    Index("identifier_validations_expires_ts_idx", "expires_ts"),
    UniqueConstraint("secret_hash", "purpose", "medium", "address"),
    comment="Proofs that somebody has a third-party identifier, given or awaited.",
)

identity_server_bindings = Table(
    "identity_server_bindings",
    metadata,
    Column("user_id", Text, ForeignKey("users.user_id"), primary_key=True),
    Column("medium", Text, primary_key=True),
    Column("address", Text, primary_key=True),
    Column("id_server", Text, primary_key=True),
    comment="What was bound at identity servers through this server, so that it can be unbound.",
)

url_previews = Table(
    "url_previews",
    metadata,
    Column("url_hash", LargeBinary, primary_key=True),
    Column("fetched_ts", BigInteger, primary_key=True),
    Column("expires_ts", BigInteger, nullable=False),
    Column("answer", LargeBinary, comment="JSON; null where there was nothing to be had."),
    Index("url_previews_expires_ts_idx", "expires_ts"),
    comment="What pages that users write of say of themselves.",
)

outgoing_messages = Table(
    "outgoing_messages",
    metadata,
    Column("message", BigInteger, Identity(), primary_key=True),
    Column("channel", Text, nullable=False, comment="mail or sms."),
    Column("recipient", Text, nullable=False),
    Column("content", LargeBinary, nullable=False, comment="Whole: of mail as RFC 5322 has it, of an SMS its text."),
    Column("created_ts", BigInteger, nullable=False),
    Column("expires_ts", BigInteger, nullable=False, comment="After which it is of no use to anybody."),
    Column("next_try_ts", BigInteger, nullable=False, comment="While a process sends it: when another may."),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Index("outgoing_messages_channel_next_try_ts_idx", "channel", "next_try_ts"),
    comment="Mail that no mail server has taken yet, and SMS that no gateway has.",
)

pushers = Table(
    "pushers",
    metadata,
    Column("pusher", BigInteger, Identity(), primary_key=True),
    Column("created_ts", BigInteger, nullable=False),
    Column("pushkey_ts", BigInteger, nullable=False, comment="When the client last set it."),
    Column("device", Integer, ForeignKey("devices.device", ondelete="cascade"), comment="It ends with this one."),
    Column("user_id", Text, ForeignKey("users.user_id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("app_id", Text, nullable=False),
    Column("pushkey", Text, nullable=False),
    Column("is_enabled", Boolean, nullable=False, server_default=true()),
    Column("description", LargeBinary, nullable=False, comment="What else the client said, as a JSON object."),
    Column("mail_after_ts", BigInteger, comment="Of one by mail: none is sent before."),
    Column("mail_pause_ms", BigInteger, comment="For how long none is sent after the next."),
    Column("token", Text, comment="In each mail: with it anybody ends the pusher."),
    UniqueConstraint("user_id", "app_id", "pushkey"),
    Index("pushers_mail_after_ts_idx", "mail_after_ts", postgresql_where=text("kind = 'email'")),
    Index("pushers_token_idx", "token", postgresql_where=text("token is not null")),
    Index("pushers_app_id_pushkey_idx", "app_id", "pushkey"),
    Index("pushers_device_idx", "device"),
    comment="Where users want to be told of what notifies them.",
)

pushes = Table(
    "pushes",
    metadata,
    Column("pusher", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False, comment="Of the event; 0 where only the count is told."),
    Column("created_ts", BigInteger, nullable=False),
    Column("room", Integer, nullable=False, comment="0 for an invite to a room that this server is not in."),
    Column("shard", SmallInteger, nullable=False),
    Column("thread", Text, nullable=False),
    Column("tweaks", Text, nullable=False, comment="A JSON object."),
    PrimaryKeyConstraint("shard", "pusher", "position"),
    Index("pushes_created_ts_idx", "created_ts"),
    comment="What push gateways still have to be told. No foreign key: a pusher may go while an event is looked at.",
)

reports = Table(
    "reports",
    metadata,
    Column("report", BigInteger, Identity(), primary_key=True),
    Column("received_ts", BigInteger, nullable=False),
    Column("score", Integer),
    Column("reporter", Text, nullable=False),
    Column("room_id", Text),
    Column("event_id", Text),
    Column("user_id", Text),
    Column("reason", Text, nullable=False),
    comment="What users reported to the administrators.",
)

server_notice_rooms = Table(
    "server_notice_rooms",
    metadata,
    Column("user_id", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("room_id", Text, nullable=False),
    PrimaryKeyConstraint("user_id", "sender"),
    comment="Where users get notices of the server.",
)

registration_tokens = Table(
    "registration_tokens",
    metadata,
    Column("token", Text, primary_key=True),
    Column("created_ts", BigInteger, nullable=False),
    Column("expires_ts", BigInteger),
    Column("uses_allowed", Integer),
    Column("used", Integer, nullable=False, server_default=text("0")),
    comment="What lets people register where registration is by token.",
)

# --- what users keep: account data, filters, receipts, profiles ------------------------------------------------

account_data = Table(
    "account_data",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("room", Integer, nullable=False, comment="0 for data of no room."),
    Column("user_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("content", LargeBinary, nullable=False, comment="A JSON object; empty where the data was deleted."),
    PrimaryKeyConstraint("user_id", "room", "type"),
    Index("account_data_position_idx", "position"),
    Index("account_data_user_id_position_idx", "user_id", "position"),
    comment="Of `m.push_rules` only what differs from the default rules is stored.",
)

filters = Table(
    "filters",
    metadata,
    Column("filter", Integer, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("json", LargeBinary, nullable=False),
    PrimaryKeyConstraint("user_id", "filter"),
    comment="Stored filters, numbered for each user. The same filter is stored once.",
)

receipts = Table(
    "receipts",
    metadata,
    Column("position", BigInteger, nullable=False),
    Column("event", BigInteger, nullable=False, comment="The event's position; 0 where we do not hold it."),
    Column("ts", BigInteger, nullable=False),
    Column("room", Integer, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("receipt_type", Text, nullable=False),
    Column("thread", Text, nullable=False, comment="A thread's root, 'main', or '' for a receipt without a thread."),
    Column("event_id", Text, nullable=False),
    PrimaryKeyConstraint("room", "user_id", "receipt_type", "thread"),
    Index("receipts_position_idx", "position"),
    Index("receipts_room_position_idx", "room", "position"),
    comment="The newest receipt of each user, type and thread, of users of any server.",
)

profiles = Table(
    "profiles",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("fields", LargeBinary, nullable=False),
    comment="Profiles of local users as JSON objects.",
)

presence = Table(
    "presence",
    metadata,
    Column("last_active_ts", BigInteger, nullable=False),
    Column("user_id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("status_msg", Text),
    prefixes=["UNLOGGED"],
    comment="The presence that local users last had; lost in a crash.",
)

rendezvous = Table(
    "rendezvous",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("modified_ts", BigInteger, nullable=False),
    Column("expires_ts", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("transactions", ARRAY(LargeBinary), nullable=False),
    Index("rendezvous_expires_ts_idx", "expires_ts"),
    prefixes=["UNLOGGED"],
    comment="Where a device leaves messages for another that it signs in.",
)

sync_connections = Table(
    "sync_connections",
    metadata,
    Column("number", BigInteger, Identity(), nullable=False, comment="Of `state`: clients name it."),
    Column("previous_number", BigInteger),
    Column("used_day", Integer, nullable=False, comment="Days since 1970: changed so seldom that updates stay cheap."),
    Column("device", Integer, nullable=False, comment="0 for who has none."),
    Column("user_id", Text, nullable=False),
    Column("conn_id", Text, nullable=False),
    Column("state", LargeBinary, nullable=False, comment="What the client has of which rooms."),
    Column("previous_state", LargeBinary, comment="What `state` was made from."),
    PrimaryKeyConstraint("user_id", "device", "conn_id"),
    Index("sync_connections_used_day_idx", "used_day"),
    comment="Connections of sliding sync (MSC4186). No foreign key: a device is deleted under the log's lock.",
)


# --- end-to-end encryption -----------------------------------------------------------------------------------

device_keys = Table(
    "device_keys",
    metadata,
    Column("device", Integer, ForeignKey("devices.device", ondelete="cascade"), primary_key=True),
    Column("json", LargeBinary, nullable=False),
    comment="Identity keys of local devices with their own signatures, as canonical JSON.",
)

one_time_keys = Table(
    "one_time_keys",
    metadata,
    Column("sequence", BigInteger, Identity(), nullable=False),
    Column("device", Integer, ForeignKey("devices.device", ondelete="cascade"), primary_key=True),
    Column("algorithm", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("json", LargeBinary, nullable=False),
    Index("one_time_keys_device_algorithm_sequence_idx", "device", "algorithm", "sequence"),
    comment="Each is given out once, the oldest first, and deleted then.",
)

given_one_time_keys = Table(
    "given_one_time_keys",
    metadata,
    Column("device", Integer, ForeignKey("devices.device", ondelete="cascade"), primary_key=True),
    Column("algorithm", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("given_ts", BigInteger, nullable=False),
    comment="SHA-256 of keys given out lately, so that a repeated upload does not bring them back.",
)

fallback_keys = Table(
    "fallback_keys",
    metadata,
    Column("device", Integer, ForeignKey("devices.device", ondelete="cascade"), primary_key=True),
    Column("algorithm", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("json", LargeBinary, nullable=False),
    Column("is_used", Boolean, nullable=False, server_default=false()),
)

dehydrated_devices = Table(
    "dehydrated_devices",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("device", Integer, ForeignKey("devices.device", ondelete="cascade"), nullable=False, unique=True),
    Column("device_data", LargeBinary, nullable=False),
    comment="A device of each user that receives keys while no other is logged in; its secrets are encrypted.",
)

cross_signing_keys = Table(
    "cross_signing_keys",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("usage", Text, primary_key=True),
    Column("public_key", Text, nullable=False),
    Column("json", LargeBinary, nullable=False),
    comment="The newest key for each usage.",
)

key_signatures = Table(
    "key_signatures",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("key_name", Text, primary_key=True),
    Column("signer", Text, primary_key=True),
    Column("signing_key_id", Text, primary_key=True),
    Column("signature", Text, nullable=False),
    Index("key_signatures_signer_signing_key_id_idx", "signer", "signing_key_id"),
    comment="Signatures added to keys of `user_id`; a key's name is a device ID or a public key.",
)

device_list_changes = Table(
    "device_list_changes",
    metadata,
    Column("position", BigInteger, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("device_ids", ARRAY(Text), nullable=False, comment="None where the cross-signing keys changed."),
    Column("seen_by", Text, comment="The only user who may know of it."),
    Column("rooms", ARRAY(Integer), nullable=False),
    Index("device_list_changes_user_id_position_idx", "user_id", "position"),
    comment="Whose devices or cross-signing keys changed, and the rooms that the user was joined to.",
)

to_device_messages = Table(
    "to_device_messages",
    metadata,
    Column("position", BigInteger, nullable=False),
    # No foreign key: an inbox may be large, and a device is deleted under the log's lock.
    Column("device", Integer, nullable=False),
    Column("json", LargeBinary, nullable=False),
    Column("origin", Text, comment="The other server that sent it; null where our own users did."),
    Column("received_ts", BigInteger, comment="When that server sent it."),
    PrimaryKeyConstraint("device", "position"),
    Index("to_device_messages_position_idx", "position"),
    Index("to_device_messages_received_ts_idx", "received_ts", postgresql_where=text("received_ts is not null")),
    comment="Inboxes. A message is deleted when a sync token proves that the device has it, or after its device.",
)

to_device_transactions = Table(
    "to_device_transactions",
    metadata,
    Column("device", Integer, primary_key=True),
    Column("txn_id", Text, primary_key=True),
    Column("event_type", Text, primary_key=True),
    Column("sent_ts", BigInteger, nullable=False),
    Index("to_device_transactions_sent_ts_idx", "sent_ts"),
    comment="What each device sent lately. No foreign key, as for the inboxes.",
)

# --- what other servers send ---------------------------------------------------------------------------------

received_to_device = Table(
    "received_to_device",
    metadata,
    Column("sender", Text, primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("received_ts", BigInteger, nullable=False),
    Index("received_to_device_received_ts_idx", "received_ts"),
    comment="To-device messages that other servers sent lately: each is delivered once, however often it comes.",
)

remote_device_lists = Table(
    "remote_device_lists",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("stream_ids", ARRAY(BigInteger), nullable=False, comment="The newest updates that it contains."),
    Column("position", BigInteger, comment="Where the log was before it was fetched; null where it never was."),
    Column("is_stale", Boolean, nullable=False, server_default=true()),
    Column("version", Integer, nullable=False, server_default=text("0")),
    Column("retry_ts", BigInteger, nullable=False, comment="If it is stale: it is not fetched before."),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Index("remote_device_lists_retry_ts_idx", "retry_ts", postgresql_where=text("is_stale")),
    comment="Users of other servers whose devices our clients follow.",
)

remote_devices = Table(
    "remote_devices",
    metadata,
    Column("user_id", Text, ForeignKey("remote_device_lists.user_id", ondelete="cascade"), primary_key=True),
    Column("device_id", Text, primary_key=True),
    Column("json", LargeBinary, nullable=False),
    Column("display_name", Text),
    comment="Identity keys of devices of other servers' users, checked, as canonical JSON.",
)

received_transactions = Table(
    "received_transactions",
    metadata,
    Column("origin", Text, primary_key=True),
    Column("txn_id", Text, primary_key=True),
    Column("received_ts", BigInteger, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Index("received_transactions_received_ts_idx", "received_ts"),
    comment="Other servers' transactions of the last day, with what was answered.",
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("letter", BigInteger, Identity(), primary_key=True),
    Column("received_ts", BigInteger, nullable=False),
    Column("retry_ts", BigInteger, comment="Null: it is not tried again."),
    Column("attempts", Integer, nullable=False),
    Column("origin", Text, nullable=False),
    Column("room_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("json", LargeBinary, nullable=False),
    UniqueConstraint("event_id", "origin"),
    Index("dead_letters_retry_ts_idx", "retry_ts"),
    Index("dead_letters_origin_idx", "origin", "letter"),
    Index("dead_letters_room_id_idx", "room_id"),
    comment="Other servers' events that could not be processed.",
)

# --- key backups ---------------------------------------------------------------------------------------------

key_backups = Table(
    "key_backups",
    metadata,
    Column("version", BigInteger, Identity(), nullable=False, unique=True),
    Column("user_id", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    Column("auth_data", LargeBinary, nullable=False),
    Column("etag", BigInteger, nullable=False, server_default=text("0")),
    Column("count", Integer, nullable=False, server_default=text("0")),
    Column("is_deleted", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("user_id", "version"),
    comment="A version is never given twice, and a deleted one keeps its row.",
)

key_backup_keys = Table(
    "key_backup_keys",
    metadata,
    Column("version", BigInteger, ForeignKey("key_backups.version", ondelete="cascade"), nullable=False),
    Column("first_message_index", BigInteger, nullable=False),
    Column("forwarded_count", BigInteger, nullable=False),
    Column("is_verified", Boolean, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("room_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("session_data", LargeBinary, nullable=False),
    PrimaryKeyConstraint("version", "room_id", "session_id"),
    comment="Room keys that only the user's devices can read.",
)

# --- other servers -------------------------------------------------------------------------------------------

server_keys = Table(
    "server_keys",
    metadata,
    Column("server_name", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("valid_until_ts", BigInteger, nullable=False),
    Column("expired_ts", BigInteger),
    comment="Signing keys of other servers, kept for good: they prove old events.",
)

server_key_answers = Table(
    "server_key_answers",
    metadata,
    Column("server_name", Text, primary_key=True),
    Column("json", LargeBinary, nullable=False),
    Column("fetched_ts", BigInteger, nullable=False),
    Column("valid_until_ts", BigInteger, nullable=False),
    Index("server_key_answers_valid_until_ts_idx", "valid_until_ts"),
    comment="The newest list of keys that each server signed, as we pass it on to those who ask us as a notary.",
)

# --- what other servers still have to get ----------------------------------------------------------------------

outbox_shards = Table(
    "outbox_shards",
    metadata,
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
    Column("process", Text, comment="Who sends to the shard's servers, for as long as its lease is valid."),
    comment="Every server of a shard has all that stands in the log up to `position`, but for those in `destinations`.",
)

outbox_processes = Table(
    "outbox_processes",
    metadata,
    Column("process", Text, primary_key=True),
    Column("expires_ts", BigInteger, nullable=False),
    prefixes=["UNLOGGED"],
    comment="Leases: the processes that send.",
)

destinations = Table(
    "destinations",
    metadata,
    Column("server", Text, primary_key=True),
    Column("position", BigInteger, comment="It has all up to here; null where the shard's position says it."),
    Column("failing_since_ts", BigInteger),
    Column("retry_ts", BigInteger, comment="Nothing is sent before."),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("reason", Text),
    comment="Servers that are behind or cannot be reached.",
)

outbox_messages = Table(
    "outbox_messages",
    metadata,
    Column("sequence", BigInteger, Identity(), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("destination", Text, nullable=False),
    Column("json", LargeBinary, nullable=False),
    Column("created_ts", BigInteger, nullable=False),
    Index("outbox_messages_destination_sequence_idx", "destination", "sequence"),
    Index("outbox_messages_position_idx", "position"),
    comment="To-device messages, as EDUs, until their server has confirmed them or they are given up.",
)

relayed_events = Table(
    "relayed_events",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False),
    Column("created_ts", BigInteger, nullable=False),
    comment="Events of other servers that we pass on: joins, leaves and knocks that were made with our help. Kept until"
    " all servers have them, or they are given up.",
)

undeliverable = Table(
    "undeliverable",
    metadata,
    Column("item", BigInteger, Identity(), primary_key=True),
    Column("at_ts", BigInteger, nullable=False),
    Column("destination", Text, nullable=False),
    Column("kind", Text, nullable=False, comment="`event`, or the EDU's type."),
    Column("name", Text, nullable=False, comment="The event's ID, or what else tells the item."),
    Column("reason", Text, nullable=False),
    Index("undeliverable_destination_idx", "destination"),
    comment="What was set aside because its server would never take it.",
)

# --- media ---------------------------------------------------------------------------------------------------

media = Table(
    "media",
    metadata,
    Column("server_name", Text, nullable=False),
    Column("media_id", Text, nullable=False),
    Column("created_ts", BigInteger, nullable=False),
    Column("user_id", Text, comment="Who uploads it; null for media of other servers."),
    Column("unused_expires_ts", BigInteger),
    Column("sha256", LargeBinary, comment="Names the file; null before it is uploaded."),
    Column("size", BigInteger, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("filename", Text),
    Column("used_ts", BigInteger, comment="Of what was not uploaded, and may go: about when somebody saw it last."),
    Column("quarantined_by", Text, comment="The administrator who did it; the row stays for as long."),
    PrimaryKeyConstraint("server_name", "media_id"),
    Index("media_user_id_idx", "user_id"),
    Index("media_sha256_idx", "sha256"),
    Index(
        "media_cache_idx",
        "used_ts",
        postgresql_include=["size"],
        postgresql_where=text("used_ts is not null and sha256 is not null and quarantined_by is null"),
    ),
    comment="Media of this server and, as far as they were fetched, of others.",
)

media_content = Table(
    "media_content",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("check_ts", BigInteger, comment="When to look whether any media still has it; null: some has."),
    Column("is_going", Boolean, nullable=False, server_default=false(), comment="Its file is being removed."),
    Column("quarantined_by", Text, comment="As in media: whatever has these bytes is shown to nobody."),
    Index("media_content_check_ts_idx", "check_ts", postgresql_where=text("check_ts is not null")),
    comment="What files hold: a row is there before its file is, and as long (storage/media_content.py).",
)
