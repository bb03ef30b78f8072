"""Objects in an S3-compatible store: put, got, listed and deleted through boto3, and every failure in one sentence.

Endpoint, region and credentials come from the environment, as boto3 reads them, unless the first two are given. Every
object carries its SHA-256; after a put its size and checksum are compared, after a get it is hashed.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import hashlib
import logging
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from troupe.errors import StorageError, first_line
from troupe.files import sha256_of

log = logging.getLogger(__name__)

CONNECT_S = 10.0
ATTEMPTS = 4
"""Of every request, with growing pauses between them."""
PARALLEL = 4
"""Files that are transferred at once."""
PART_BYTES = 16 * 2**20
"""Larger files go in parts; of one that fails, only the part is sent again."""
RIGHTS = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"


class Bucket:
    """`s3://bucket/prefix`; keys are relative to the prefix. StorageError where boto3 or credentials are missing."""

    def __init__(
        self, address: str, *, endpoint_url: str | None = None, region: str | None = None, timeout_s: float = 60.0
    ) -> None:
        self.address = address.rstrip("/")
        self.name, _, self.prefix = self.address.removeprefix("s3://").partition("/")
        try:
            session = _session()
            from boto3.s3.transfer import TransferConfig
            from botocore.config import Config
        except ImportError:
            raise StorageError(f"{address} needs boto3, which is not installed; run `make install`") from None
        with self._described("cannot be used"):
            if session.get_credentials() is None:
                raise StorageError(
                    f"{self.address} needs credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                    "(AWS_ENDPOINT_URL for another store than Amazon's)"
                )
            self._region = region or os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
            self._client: Any = session.client(
                "s3",
                region_name=self._region,
                endpoint_url=endpoint_url,
                config=Config(
                    # While a body is sent, urllib3 counts silence by the connect timeout.
                    connect_timeout=min(CONNECT_S, timeout_s),
                    read_timeout=timeout_s,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    max_pool_connections=2 * PARALLEL,
                ),
            )
        # The library's own threads are no daemons: they would keep a process alive that has stopped waiting for them.
        self._transfer = TransferConfig(
            use_threads=False, multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES
        )
        # Set to when_required for stores that know no checksums; size and our own hash remain.
        wanted = self._client.meta.config.request_checksum_calculation
        self._checksum = {"ChecksumAlgorithm": "SHA256"} if wanted != "when_required" else {}

    def at(self, name: str) -> Bucket:
        """Return the place under `name`, through the same connections."""
        return self._moved("/".join(filter(None, [self.prefix, name])))

    def above(self, levels: int) -> Bucket:
        """Return the place so many levels up."""
        return self._moved("/".join(self.prefix.split("/")[:-levels]))

    def _moved(self, prefix: str) -> Bucket:
        moved = copy.copy(self)
        moved.prefix = prefix
        moved.address = f"s3://{'/'.join(filter(None, [self.name, prefix]))}"
        return moved

    def check(self) -> None:
        """Raise StorageError unless the bucket is there, ours, and can be written."""
        with self._described("cannot be used"):
            self._client.head_bucket(Bucket=self.name)
            self._client.list_objects_v2(Bucket=self.name, Prefix=self._key(""), MaxKeys=1)
            self._client.put_object(Bucket=self.name, Key=self._key(".write-check"), Body=b"")
        with contextlib.suppress(StorageError):  # a store that keeps everything is one too
            self.delete([".write-check"])

    # -- objects ---------------------------------------------------------------------------------------------

    def put(self, file: Path, key: str, *, size: int | None = None, sha256: str | None = None) -> None:
        """Store the first `size` bytes (default: all) of a file, which must have the hash `sha256`, and check them."""
        from s3transfer.utils import ReadFileChunk

        size = file.stat().st_size if size is None else size
        kind, _ = mimetypes.guess_type(file.name)
        with ReadFileChunk.from_filename(file, 0, size) as beginning:
            digest = hashlib.sha256()
            while block := beginning.read(2**20):
                digest.update(block)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise StorageError(f"{file} has another SHA-256 than its manifest says, so it is not stored; remove it")
            beginning.seek(0)
            extra = {
                "Metadata": {"sha256": digest.hexdigest()},
                **self._checksum,
                **({"ContentType": kind} if kind else {}),
            }
            with self._described(f"does not take {key}"):
                self._client.upload_fileobj(
                    beginning, self.name, self._key(key), ExtraArgs=extra, Config=self._transfer
                )
                stored = self._client.head_object(Bucket=self.name, Key=self._key(key), ChecksumMode="ENABLED")
        # The checksum of an object in parts is one of its parts' checksums, which the store has compared.
        whole = size < self._transfer.multipart_threshold
        checksum = base64.b64encode(digest.digest()).decode()
        if stored["ContentLength"] != size or (whole and stored.get("ChecksumSHA256", checksum) != checksum):
            raise StorageError(
                f"{self.address} has {stored['ContentLength']} bytes of {key}, or others than the {size} that were sent"
            )

    def get(self, key: str, file: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        """Fetch an object into `file`, which must have that size and hash; by default those it was stored with."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._described(f"does not give {key}"):
            if size is None or sha256 is None:
                stored = self._client.head_object(Bucket=self.name, Key=self._key(key))
                size, sha256 = stored["ContentLength"], stored["Metadata"].get("sha256")
            self._client.download_file(self.name, self._key(key), str(file), Config=self._transfer)
        found = file.stat().st_size
        if found != size or (sha256 and sha256_of(file) != sha256):
            raise StorageError(f"{self.address}/{key} is damaged: its {found} bytes are not the {size} of its manifest")

    def read(self, key: str, *, first: int | None = None) -> bytes | None:
        """Return the content of a small object, or its `first` bytes; None where there is none."""
        from botocore.exceptions import ClientError

        wanted = {"Range": f"bytes=0-{first - 1}"} if first else {}
        with self._described(f"does not give {key}"):
            try:
                return bytes(self._client.get_object(Bucket=self.name, Key=self._key(key), **wanted)["Body"].read())
            except ClientError as error:
                if _code(error) in ("NoSuchKey", "404", "InvalidRange"):
                    return None
                raise

    def sizes(self, under: str = "") -> dict[str, int]:
        """Return key -> bytes of every object whose key begins with `under`."""
        return {key: size for key, (size, _) in self.listing(under).items()}

    def listing(self, under: str = "") -> dict[str, tuple[int, str]]:
        """Return key -> (bytes, the store's tag of the content)."""
        found: dict[str, tuple[int, str]] = {}
        root = self._key("")
        with self._described("cannot be listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=root + under)
            for page in pages:
                found |= {item["Key"][len(root) :]: (item["Size"], item["ETag"]) for item in page.get("Contents", [])}
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there count as removed."""
        names = [{"Key": self._key(key)} for key in keys]
        for start in range(0, len(names), 1000):
            with self._described("deletes nothing"):
                batch = {"Objects": names[start : start + 1000], "Quiet": True}
                refused = self._client.delete_objects(Bucket=self.name, Delete=batch).get("Errors", [])
            if refused:
                raise StorageError(f"{self.address} did not delete {refused[0]['Key']}: {refused[0].get('Message')}")

    def drop_unfinished(self) -> None:
        """Give up the parts that a killed process left; a store without such a list keeps them."""
        with contextlib.suppress(StorageError), self._described("cannot be tidied"):
            found = self._client.list_multipart_uploads(Bucket=self.name, Prefix=self._key(""))
            for upload in found.get("Uploads", []):
                self._client.abort_multipart_upload(Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"])

    def upload(self, directory: Path) -> int:
        """Store every file below `directory`; returns the number of files."""
        files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
        try:
            for path in files:
                self.put(path, path.relative_to(directory).as_posix())
        except StorageError as error:
            raise StorageError(f"{error}; everything is in {directory}") from None
        log.info("%d files copied to %s", len(files), self.address)
        return len(files)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    # -- what goes wrong -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _described(self, what: str) -> Iterator[None]:
        """Raise any failure of the library as a StorageError that begins with the address and `what`."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

        try:
            yield
        except ClientError as error:
            raise StorageError(f"{self.address} {what}: {self._refusal(error)}") from None
        except (HTTPClientError, ConnectionError) as error:
            raise StorageError(
                f"{self.address} {what}: {self._client.meta.endpoint_url} does not answer ({first_line(error)}); "
                "check the address, AWS_ENDPOINT_URL, and the network"
            ) from None
        except (Boto3Error, BotoCoreError, ValueError) as error:
            raise StorageError(f"{self.address} {what}: {first_line(error)}") from None

    def _refusal(self, error: Any) -> str:
        code, endpoint = _code(error), self._client.meta.endpoint_url
        answer = error.response.get("ResponseMetadata", {})
        region = answer.get("HTTPHeaders", {}).get("x-amz-bucket-region") or error.response["Error"].get("Region")
        if region and region != self._region:
            return (
                f"bucket {self.name!r} is in region {region}, not {self._region}; set the region (AWS_REGION) "
                f"to {region}"
            )
        if code in ("NoSuchBucket", "404"):
            return f"there is no bucket {self.name!r} at {endpoint}; create it, or correct the address"
        if answer.get("HTTPStatusCode") in (401, 403):
            return f"{endpoint} refuses these credentials ({first_line(error)}); they need {RIGHTS} on {self.name!r}"
        return first_line(error)


@functools.cache
def _session() -> Any:
    """Make the process's one session: it reads descriptions of the service, slower than most requests."""
    import boto3

    return boto3.session.Session()


def in_threads(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls, PARALLEL at a time; raise the first failure once those that began have ended."""
    # The threads of this pool are daemons, unlike an executor's: the process can end while a transfer hangs.
    with ThreadPool(PARALLEL) as pool:
        try:
            for _ in pool.imap_unordered(lambda call: call(), calls):
                pass
        except Exception:
            pool.terminate()
            pool.join()
            raise


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
