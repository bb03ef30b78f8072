"""The recipe's section of the object store that a run is backed up to and resumed from."""

from __future__ import annotations

from pydantic import Field, field_validator

from core.config import Section


def check_address(address: str, field: str) -> str:
    """`address`, or ValueError unless it is written s3://bucket or s3://bucket/prefix."""
    if not address.startswith("s3://") or not address.removeprefix("s3://").split("/")[0]:
        raise ValueError(f"{field} is written s3://bucket/prefix")
    return address


class StorageConfig(Section):
    """Backup of the run to an S3-compatible store. Credentials come from the environment alone, as boto3 finds them."""

    url: str | None = None
    """s3://bucket/prefix that holds the runs, as `run.directory` does; the run is `<url>/<run.name>`. null: no backup."""
    endpoint_url: str | None = None
    """Address of another store than Amazon's; null: AWS_ENDPOINT_URL of the environment, else Amazon's."""
    region: str | None = None
    """Region of the bucket; null: AWS_REGION or AWS_DEFAULT_REGION of the environment, else us-east-1."""
    every: int | None = Field(default=None, ge=0)
    """Steps between backups, which take the newest and the best checkpoint; null: whenever there is a new one; 0: only at the end."""
    keep: int | None = Field(default=2, ge=1)
    """Newest checkpoints kept in the store, beside the best; null: all."""
    queue: int = Field(default=2, ge=1)
    """Backups that may wait for the one that is going on; beyond it the oldest is left out, and no step ever waits."""
    wait_s: float = Field(default=600, ge=0)
    """Seconds that the end of the run waits for its backup; then it says what is not backed up."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds of silence after which a request to the store is given up and tried again."""

    @field_validator("url")
    @classmethod
    def _url_is_an_address(cls, url: str | None) -> str | None:
        return url and check_address(url, "url")

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_has_no_secret(cls, endpoint_url: str | None) -> str | None:
        if endpoint_url is None:
            return None
        scheme, _, rest = endpoint_url.partition("://")
        if scheme not in ("http", "https") or not rest:
            raise ValueError("endpoint_url is written https://host[:port]")
        if "@" in rest.split("/")[0]:
            raise ValueError("endpoint_url holds no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return endpoint_url
