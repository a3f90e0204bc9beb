"""Every endpoint of the admin API, under the paths that existing dashboards and scripts use."""

from collections.abc import Sequence

from federation.web import Route
from homeserver.client_api.media_administration import MediaAdministrationAPI
from homeserver.client_api.moderation import ModerationAPI
from homeserver.client_api.notice_administration import NoticeAdministrationAPI
from homeserver.client_api.routing import Authenticator, admin_route
from homeserver.client_api.server_administration import ServerAdministrationAPI, SharedSecretRegistrationAPI
from homeserver.client_api.user_administration import UserAdministrationAPI


def report_routes(api: ModerationAPI, authenticator: Authenticator) -> Sequence[Route]:
    """Reports as administrators see them."""
    base = "/_synapse/admin/v1/event_reports"
    return [
        admin_route("GET", base, api.list_reports, authenticator),
        admin_route("GET", f"{base}/{{report_id}}", api.get_report, authenticator),
        admin_route("DELETE", f"{base}/{{report_id}}", api.delete_report, authenticator),
    ]


def media_routes(api: MediaAdministrationAPI, authenticator: Authenticator) -> Sequence[Route]:
    """Media in quarantine, and media to be removed."""
    base = "/_synapse/admin/v1"
    endpoints = [
        ("POST", f"{base}/media/quarantine/{{server_name}}/{{media_id}}", api.quarantine),
        ("POST", f"{base}/media/unquarantine/{{server_name}}/{{media_id}}", api.release),
        ("POST", f"{base}/user/{{user_id}}/media/quarantine", api.quarantine_of_user),
        ("POST", f"{base}/room/{{room_id}}/media/quarantine", api.quarantine_of_room),
        ("POST", f"{base}/quarantine_media/{{room_id}}", api.quarantine_of_room),
        ("GET", f"{base}/room/{{room_id}}/media", api.list_of_room),
        ("DELETE", f"{base}/media/{{server_name}}/{{media_id}}", api.delete),
        ("POST", f"{base}/purge_media_cache", api.purge_cache),
    ]
    return [admin_route(method, path, endpoint, authenticator) for method, path, endpoint in endpoints]


def notice_routes(api: NoticeAdministrationAPI, authenticator: Authenticator) -> Sequence[Route]:
    """Server notices."""
    path = "/_synapse/admin/v1/send_server_notice"
    return [
        admin_route("POST", path, api.send, authenticator),
        admin_route("PUT", f"{path}/{{txn_id}}", api.send, authenticator),
    ]


def user_routes(api: UserAdministrationAPI, authenticator: Authenticator) -> Sequence[Route]:
    """Accounts as administrators manage them."""
    one, two = "/_synapse/admin/v1", "/_synapse/admin/v2/users"
    endpoints = [
        ("GET", f"{one}/server_version", api.get_server_version),
        ("GET", two, api.list_users),
        ("GET", f"{two}/{{user_id}}", api.get_user),
        ("PUT", f"{two}/{{user_id}}", api.put_user),
        ("GET", f"{two}/{{user_id}}/devices", api.list_devices),
        ("DELETE", f"{two}/{{user_id}}/devices/{{device_id}}", api.delete_device),
        ("PUT", f"{one}/users/{{user_id}}/admin", api.put_admin),
        ("POST", f"{one}/users/{{user_id}}/login", api.log_in_as),
        ("GET", f"{one}/users/{{user_id}}/joined_rooms", api.list_joined_rooms),
        ("POST", f"{one}/deactivate/{{user_id}}", api.deactivate),
        ("POST", f"{one}/reset_password/{{user_id}}", api.reset_password),
    ]
    return [admin_route(method, path, endpoint, authenticator) for method, path, endpoint in endpoints]


def server_routes(
    api: ServerAdministrationAPI, registration: SharedSecretRegistrationAPI, authenticator: Authenticator
) -> Sequence[Route]:
    """Registration on behalf of others, registration tokens, who is who."""
    base = "/_synapse/admin/v1"
    tokens = f"{base}/registration_tokens"
    return [
        Route("GET", f"{base}/register", registration.get_nonce),
        Route("POST", f"{base}/register", registration.register),
        admin_route("GET", f"{base}/whois/{{user_id}}", api.whois, authenticator),
        admin_route("GET", f"{base}/users/{{user_id}}/admin", api.get_admin, authenticator),
        admin_route("GET", tokens, api.list_tokens, authenticator),
        admin_route("POST", f"{tokens}/new", api.new_token, authenticator),
        admin_route("DELETE", f"{tokens}/{{token}}", api.delete_token, authenticator),
    ]
