"""Requests to S3 are signed as AWS's own library signs them."""

import hashlib
from datetime import UTC, datetime
from unittest.mock import patch

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as TheirCredentials
from hypothesis import given
from hypothesis import strategies as st

from storage.s3_signing import NOTHING, Credentials, Unsigned, sign

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
segments = st.text("abcXYZ019-_.~", min_size=1, max_size=20)
secrets = st.text("abcXYZ019+/=", min_size=1, max_size=40)


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE"]),
    host=st.sampled_from(["s3.example.org", "127.0.0.1:9000"]),
    path=st.lists(segments, min_size=1, max_size=4),
    query=st.lists(segments, max_size=2, unique=True).map(sorted),
    secret=secrets,
    body=st.none() | st.binary(max_size=20),
)
def test_signatures_are_those_of_botocore(
    method: str, host: str, path: list[str], query: list[str], secret: str, body: bytes | None
) -> None:
    sha256 = NOTHING if body is None else hashlib.sha256(body).hexdigest()
    url, wanted = "/" + "/".join(path), "&".join(f"{name}=a%2Fb" for name in query)
    own = sign(
        Unsigned(method=method, host=host, path=url, query=wanted, body_sha256=sha256),
        Credentials("AKIDEXAMPLE", secret, "eu-central-1"),
        NOW,
    )

    theirs = AWSRequest(method, f"http://{host}{url}?{wanted}", data=body, headers={"X-Amz-Content-SHA256": sha256})
    with patch.object(botocore.auth, "get_current_datetime", return_value=NOW):
        botocore.auth.S3SigV4Auth(TheirCredentials("AKIDEXAMPLE", secret), "s3", "eu-central-1").add_auth(theirs)
    assert own["Authorization"] == theirs.headers["Authorization"].replace(", ", ",").replace(",S", ", S")


def test_the_secret_is_not_shown() -> None:
    assert "secret" not in repr(Credentials("key", "secret!", "here"))
