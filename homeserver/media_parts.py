"""All of media built in one place from arguments, as `federation_parts.py` does with federation."""

from federation.inbound.content_repository import MediaAnswers, ServedFile
from federation.outbound.addresses import AddressPolicy
from federation.outbound.egress import Egress
from federation.outbound.remote_media import RemoteMedia
from federation.protocol.types import ServerName
from federation.web import Call
from homeserver import configured, release
from homeserver.client_api.content_repository import ContentRepositoryAPI, content_disposition, thumbnail_request
from homeserver.config import Config
from homeserver.federation_parts import Outbound
from homeserver.services.content_repository import DEFAULT_TIMEOUT_MS, ContentRepository, MediaLimits
from homeserver.services.media_cache import MediaCache
from homeserver.services.thumbnails import Thumbnails
from homeserver.services.url_previews import URLPreviews
from storage.database import Database


class MediaParts:
    """The repository, and how clients and other servers ask it."""

    def __init__(self, config: Config, database: Database, outbound: Outbound) -> None:
        settings, server_name = config.media, ServerName(config.server_name)
        files = configured.media_store(config)
        self.cache = MediaCache(database, files, max_bytes=settings.max_remote_cache_size)
        self.repository = ContentRepository(
            database,
            files,
            RemoteMedia(outbound.client, outbound.egress, max_bytes=settings.max_remote_size),
            self.cache,
            server_name=server_name,
            limits=MediaLimits(
                max_upload_size=settings.max_upload_size,
                max_size_per_user=settings.max_size_per_user,
                info_uri=config.support.page or f"{config.base_url}/",
            ),
        )
        self.thumbnails = Thumbnails(files, server_name, max_pixels=settings.max_image_pixels)
        self.previews = URLPreviews(
            database,
            files,
            Egress(
                AddressPolicy(config.federation.denied_ranges, config.url_previews.allowed_ranges),
                outbound.egress.lookup,
                config.federation.certificate_authorities,
                user_agent=f"Hearth/{release.number()} (bot)",
            ),
            configured.preview_policy(config),
            server_name,
        )
        self.api = ContentRepositoryAPI(self.repository, self.thumbnails, self.previews)
        self.answers = MediaAnswers(download=self._download, thumbnail=self._thumbnail)

    async def _download(self, media_id: str, call: Call) -> ServedFile:
        found = await self.repository.find_local(media_id, _timeout_ms(call))
        disposition = content_disposition("attachment", found.media.filename)
        return ServedFile(found.file, found.media.content_type, disposition)

    async def _thumbnail(self, media_id: str, call: Call) -> ServedFile:
        request = thumbnail_request(call)
        made = await self.thumbnails.get(await self.repository.find_local(media_id, _timeout_ms(call)), request)
        return ServedFile(made.file, made.content_type, content_disposition("inline", made.filename))


def _timeout_ms(call: Call) -> int:
    return call.query_int("timeout_ms", DEFAULT_TIMEOUT_MS, maximum=1 << 53)
