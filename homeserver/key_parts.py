"""End-to-end encryption built in one place from arguments, with how clients ask for it."""

from federation.inbound.devices import DeviceAnswers
from homeserver.client_api import routes
from homeserver.client_api.dehydrated_devices import DehydratedDevicesAPI
from homeserver.client_api.end_to_end_encryption import EndToEndEncryptionAPI
from homeserver.client_api.interactive_auth import InteractiveAuth
from homeserver.client_api.key_backup import KeyBackupAPI
from homeserver.client_api.routing import ClientRoute
from homeserver.federation_parts import Ground, Outbound
from homeserver.services.cross_signing import CrossSigningService
from homeserver.services.dehydrated_devices import DehydratedDeviceService
from homeserver.services.device_keys import DeviceKeysService
from homeserver.services.key_backups import KeyBackupService
from homeserver.services.key_upkeep import KeyUpkeep
from homeserver.services.keys_for_servers import KeysForServers
from homeserver.services.remote_devices import RemoteDevices
from homeserver.services.remote_keys import RemoteKeys
from storage.end_to_end_keys import KeyCountCache
from storage.invalidations import Invalidated


class KeyParts:
    """Keys of devices and users, ours and those of other servers."""

    def __init__(self, ground: Ground, outbound: Outbound, interactive_auth: InteractiveAuth) -> None:
        database, log, tail = ground.database, ground.log, ground.tail
        self.counts = KeyCountCache(database)
        tail.add_view(self.counts.view, Invalidated)
        self.upkeep = KeyUpkeep(database, tail)
        self.remote_devices = RemoteDevices(database, log, tail, outbound.devices)
        outbound.availability.observers.append(self.remote_devices.server_is_back)
        remote = RemoteKeys(database, outbound.devices, self.remote_devices)
        device_keys = DeviceKeysService(database, log, ground.server_name, remote)
        for_servers = KeysForServers(
            database,
            device_keys,
            ground.server_name,
            with_device_names=ground.config.federation.show_device_names,
        )
        self.answers = DeviceAnswers(devices=for_servers.devices, query=for_servers.query, claim=for_servers.claim)
        self.routes: list[ClientRoute] = [
            *routes.end_to_end_encryption_routes(
                EndToEndEncryptionAPI(device_keys, CrossSigningService(log), interactive_auth)
            ),
            *routes.dehydrated_device_routes(DehydratedDevicesAPI(DehydratedDeviceService(database, log, tail))),
            *routes.key_backup_routes(KeyBackupAPI(KeyBackupService(database))),
        ]
