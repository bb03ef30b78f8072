"""A directory copied to an S3-compatible store; credentials and endpoint come from the environment, as boto3 reads them."""

from __future__ import annotations

import logging
import mimetypes
from pathlib import Path
from typing import Any

from core.errors import ConfigError

log = logging.getLogger(__name__)


class Bucket:
    """`s3://bucket/prefix`. ConfigError, before anything is copied, where boto3 or credentials are missing."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._bucket, _, self._prefix = self.address.removeprefix("s3://").partition("/")
        try:
            import boto3
        except ImportError:
            raise ConfigError("upload needs boto3, which is not installed; run `make install`") from None
        session = boto3.session.Session()
        if session.get_credentials() is None:
            raise ConfigError(
                f"upload to {self.address} needs credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_ENDPOINT_URL "
                "for another store than Amazon's), or leave upload out"
            )
        self._client: Any = session.client("s3", region_name=session.region_name or "us-east-1")

    def upload(self, directory: Path) -> int:
        """Copy every file below `directory`; the number of files. ConfigError with the store's reason when it refuses."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
        for path in files:
            key = "/".join(filter(None, [self._prefix, str(path.relative_to(directory))]))
            kind, _ = mimetypes.guess_type(path.name)
            extra = {"ContentType": kind} if kind else {}
            try:
                self._client.upload_file(str(path), self._bucket, key, ExtraArgs=extra)
            except (BotoCoreError, ClientError, S3UploadFailedError) as error:
                raise ConfigError(
                    f"{path} could not be copied to {self.address} ({error}); everything is in {directory}"
                ) from None
        log.info("%d files copied to %s", len(files), self.address)
        return len(files)
