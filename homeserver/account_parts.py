"""Accounts and their sessions, built in one place from arguments, with how clients and administrators ask for them."""

import dataclasses

from federation.outbound.addresses import AddressPolicy
from federation.outbound.egress import Egress
from federation.outbound.name_lookup import SystemNameLookup
from federation.web import Route
from homeserver import configured, release
from homeserver.client_api import admin_routes, routes
from homeserver.client_api import interactive_auth as uia
from homeserver.client_api.accounts import AccountsAPI
from homeserver.client_api.application_services import ApplicationServicesAPI
from homeserver.client_api.auth_stages import (
    CaptchaStage,
    DummyStage,
    IdentifierStage,
    PasswordStage,
    RegistrationTokenStage,
    TermsStage,
)
from homeserver.client_api.authentication import TokenAuthenticator
from homeserver.client_api.confirmation_page import ConfirmationPageAPI
from homeserver.client_api.device_management import DeviceManagementAPI
from homeserver.client_api.discovery import DiscoveryAPI
from homeserver.client_api.interactive_auth import InteractiveAuth, Stage
from homeserver.client_api.login import LoginAPI
from homeserver.client_api.media_administration import MediaAdministrationAPI
from homeserver.client_api.moderation import ModerationAPI
from homeserver.client_api.notice_administration import NoticeAdministrationAPI
from homeserver.client_api.outside_services import OutsideServicesAPI
from homeserver.client_api.pages import PagesAPI
from homeserver.client_api.rendezvous import RendezvousAPI
from homeserver.client_api.routing import ClientRoute
from homeserver.client_api.server_administration import ServerAdministrationAPI, SharedSecretRegistrationAPI
from homeserver.client_api.stage_pages import StagePagesAPI
from homeserver.client_api.third_party_identifiers import ThirdPartyIdentifiersAPI
from homeserver.client_api.user_administration import UserAdministrationAPI
from homeserver.config import Config
from homeserver.federation_parts import Ground, Outbound
from homeserver.room_parts import RoomParts
from homeserver.services import device_keys, identifiers
from homeserver.services.accounts import AccountService
from homeserver.services.application_service_client import ApplicationServiceClient
from homeserver.services.application_services import ApplicationServices
from homeserver.services.captcha import Captcha
from homeserver.services.device_activity import DeviceActivity
from homeserver.services.identifiers import IdentifierService
from homeserver.services.impersonation import Impersonation
from homeserver.services.mail import Mailer
from homeserver.services.media_cache import MediaCache
from homeserver.services.passwords import Passwords
from homeserver.services.rate_limits import RateLimits
from homeserver.services.rendezvous import RendezvousService
from homeserver.services.sessions import SessionService
from homeserver.services.sms import SMSSender
from homeserver.services.user_names import UserNames
from storage.invalidations import Invalidated


class AccountParts:
    """Who may act, how they prove it, and what administrators do about them."""

    def __init__(
        self,
        ground: Ground,
        outbound: Outbound,
        rooms: RoomParts,
        application_services: ApplicationServices,
        mailer: Mailer,
        media: MediaCache,
    ) -> None:
        config, database = ground.config, ground.database
        passwords = Passwords(**dataclasses.asdict(config.passwords))
        names = UserNames(ground.server_name, application_services)
        sessions = SessionService(
            database,
            ground.log,
            configured.lifetimes(config.sessions),
            devices_changed=[device_keys.devices_changed],
        )
        ground.tail.add_view(sessions.on_change, Invalidated)
        self.figures = sessions.figures
        self.places = passwords.places
        self.impersonation = Impersonation(database, application_services)
        ground.tail.add_view(self.impersonation.on_change, Invalidated)
        self.activity = DeviceActivity(database)
        self.service = AccountService(
            database,
            sessions,
            passwords,
            ground.rate_limits,
            names,
            leave_all_rooms=rooms.member_upkeep.leave_all_rooms,
        )
        self.authenticator = TokenAuthenticator(
            sessions,
            application_services,
            self.impersonation,
            self.activity,
            ground.tail,
            query_string_tokens=config.query_string_tokens,
        )
        self.egress = Egress(  # to application services and the SMS gateway, wherever the operator runs them
            AddressPolicy(()),
            SystemNameLookup(),
            config.federation.certificate_authorities,
            user_agent=f"Hearth/{release.number()}",
        )
        self.sms = SMSSender(database, self.egress, configured.sms_gateway(config.sms))
        self.identifiers = IdentifierService(
            database, mailer, self.sms, ground.rate_limits, configured.identifier_policy(config)
        )
        self.interactive_auth = InteractiveAuth(
            database, self._stages(config, outbound, ground.rate_limits), ground.rate_limits
        )
        login = LoginAPI(
            self.service, sessions, self.authenticator, self.interactive_auth, base_url=config.public_base_url
        )
        accounts = AccountsAPI(
            self.service,
            sessions,
            self.interactive_auth,
            self.authenticator,
            identity_servers=rooms.identity_servers,
            registration=configured.registration_policy(config.registration),
        )
        discovery = DiscoveryAPI(configured.description(config))
        administration = ServerAdministrationAPI(database, self.service, self.activity)
        secret = config.registration.shared_secret
        registration = SharedSecretRegistrationAPI(
            self.service, sessions, passwords, secret.value if secret is not None else None
        )
        users = UserAdministrationAPI(database, self.service, sessions, passwords, rooms.profiles, names)
        moderation = ModerationAPI(database, ground.reader, names)
        self.routes: list[ClientRoute] = [
            *routes.discovery_routes(discovery),
            *routes.login_routes(login),
            *RendezvousAPI(RendezvousService(database), base_url=config.base_url).routes(),
            *routes.account_routes(accounts),
            *routes.identifier_routes(
                ThirdPartyIdentifiersAPI(self.identifiers, rooms.identity_servers, self.interactive_auth)
            ),
            *routes.application_service_routes(
                ApplicationServicesAPI(self.authenticator, ApplicationServiceClient(self.egress))
            ),
            *routes.device_routes(DeviceManagementAPI(database, sessions, self.activity, self.interactive_auth)),
            *routes.administration_routes(administration),
            *routes.report_routes(moderation),
            *routes.outside_service_routes(OutsideServicesAPI(database, configured.turn_servers(config.turn))),
            *routes.form_routes(
                StagePagesAPI(
                    self.interactive_auth,
                    self.identifiers,
                    server_name=ground.server_name,
                    captcha_script=config.registration.captcha.script_url,
                ),
                ConfirmationPageAPI(self.identifiers, server_name=ground.server_name),
            ),
        ]
        self.page_routes: list[Route] = [
            *routes.well_known_routes(discovery),
            *routes.page_routes(PagesAPI(server_name=ground.server_name)),
        ]
        self.admin_routes: list[Route] = [
            *admin_routes.server_routes(administration, registration, self.authenticator),
            *admin_routes.user_routes(users, self.authenticator),
            *admin_routes.report_routes(moderation, self.authenticator),
            *admin_routes.notice_routes(NoticeAdministrationAPI(rooms.notices, names), self.authenticator),
            *admin_routes.media_routes(
                MediaAdministrationAPI(database, media, names, ground.server_name), self.authenticator
            ),
        ]

    def _stages(self, config: Config, outbound: Outbound, rate_limits: RateLimits) -> dict[str, Stage]:
        """What somebody can be asked to prove here."""
        stages: dict[str, Stage] = {
            uia.DUMMY: DummyStage(),
            uia.PASSWORD: PasswordStage(self.service),
            uia.REGISTRATION_TOKEN: RegistrationTokenStage(self.service),
            uia.TERMS: TermsStage(configured.policies(config.registration)),
        }
        for stage, medium in ((uia.EMAIL, identifiers.EMAIL), (uia.PHONE, identifiers.PHONE)):
            if medium in self.identifiers.media:
                stages[stage] = IdentifierStage(self.identifiers, medium)
        keys = configured.captcha(config.registration.captcha)
        if keys is not None:
            stages[uia.RECAPTCHA] = CaptchaStage(Captcha(outbound.egress, keys), rate_limits)
        return stages
