"""A repository of the Hugging Face hub: the names in it, and its files, each fetched when it is asked for.

All is done by `huggingface_hub`: its cache, its token, its offline mode (HF_HUB_OFFLINE) and its progress bar. What
this module adds is that one commit is read throughout, and that a failure is one line that says what to do.
"""

import re
from pathlib import Path
from typing import NoReturn

from absl import logging

from zigma_jax.errors import ConfigError, MissingPackageError, WeightsError

_TIMEOUT = 10.0  # seconds, until a network that swallows requests counts as none
_PLACE = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<path>[^@]*))?(?:@(?P<revision>.+))?")
FORM = "hf://owner/repository[/path][@revision]"


class HubError(WeightsError, FileNotFoundError):
    """The hub, or its cache where there is no network, does not give what was asked for."""


def parse_place(place: str) -> tuple[str, str, str | None]:
    """Repository, path in it ("" for its top) and revision (None for the default) of `hf://…`.

    Raises ConfigError for anything that has not this form.
    """
    match = _PLACE.fullmatch(place)
    parts = (match["path"] or "").strip("/").split("/") if match else []
    if match is None or ".." in parts or place.startswith(("hf://datasets/", "hf://spaces/")):
        raise ConfigError(f"{place!r}: a place on the hub has the form {FORM}, of a repository of models")
    return match["repository"], "/".join(parts), match["revision"]


class HubRepository:
    """One commit of a repository of models.

    Attributes:
        names: the paths of its files. Where the hub cannot be reached: of those that its cache holds.
        revision: the commit's hash.
        unreached: why the hub could not be reached; None if it was.

    Raises:
        MissingPackageError: `huggingface_hub` is not installed.
        HubError: no such repository or revision, no permission, or no network and nothing in the cache.
    """

    def __init__(self, repository: str, revision: str | None, *, flag: str):
        try:
            import huggingface_hub as hub
            from huggingface_hub import constants, errors
        except ImportError as error:
            raise MissingPackageError(
                f"hf://{repository} is read through huggingface_hub: pip install 'zigma_jax[hub]', or give a local "
                f"directory as {flag}"
            ) from error
        self._hub, self._errors = hub, errors
        # What its client raises, httpx in one version and httpx2 in another; offline mode is a ConnectionError.
        self._failures = (errors.HTTPError, ConnectionError)
        self._repository, self._asked, self._flag = repository, revision, flag
        self._endpoint, self._cache = constants.ENDPOINT, constants.HF_HUB_CACHE
        self.unreached: str | None = None
        try:
            info = hub.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT)
            self.names = [file.rfilename for file in info.siblings or []]
            self.revision = str(info.sha)
        except self._failures as error:
            self._from_cache(error)

    def fetch(self, name: str) -> Path:
        """The local path of a file in `names`, downloaded if it is not in the cache."""
        if self.unreached is not None:
            return self._snapshot / name
        try:
            # By the revision's own name first, so that the cache knows later which commit it stood for.
            path = Path(self._hub.hf_hub_download(self._repository, name, revision=self._asked))
            if self.revision not in path.parts:  # a branch that has moved since the names were read
                path = Path(self._hub.hf_hub_download(self._repository, name, revision=self.revision))
            return path
        except (*self._failures, self._errors.LocalEntryNotFoundError) as error:
            self._refuse(error, name)

    def _from_cache(self, error: Exception) -> None:
        """Takes the names that the cache holds, or says why the hub gave none."""
        if isinstance(error, self._errors.RevisionNotFoundError):
            self._refuse(error)
        try:
            snapshot = self._hub.snapshot_download(self._repository, revision=self._asked, local_files_only=True)
        except self._errors.LocalEntryNotFoundError as missing:
            snapshot = getattr(missing, "snapshot_path", None)  # of a repository whose files are not all in the cache
            if snapshot is None:
                self._refuse(error)
        self._snapshot = Path(snapshot)
        self.names = sorted(
            str(path.relative_to(snapshot).as_posix()) for path in self._snapshot.rglob("*") if path.is_file()
        )
        self.revision = self._snapshot.name
        self.unreached = self._reason(error)
        if not isinstance(error, self._errors.OfflineModeIsEnabled):
            logging.warning(
                "hf://%s: %s; reading revision %s of its cache", self._repository, self.unreached, self.revision
            )

    def how_to_do_without(self) -> str:
        """For whoever has no network, and not in the cache what is needed."""
        return (
            f"The cache {self._cache} does not hold it. With a network, unset HF_HUB_OFFLINE or run "
            f"`hf download {self._repository}` (`huggingface-cli download`); without, give a local directory as "
            f"{self._flag}"
        )

    def _reason(self, error: Exception) -> str:
        if isinstance(error, self._errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        cause = error.__cause__ if isinstance(error, self._errors.LocalEntryNotFoundError) else error
        said = str(cause or error).strip().partition("\n")[0][:200] or type(error).__name__
        return f"{self._endpoint} was not reached ({said})"

    def _refuse(self, error: Exception, name: str = "") -> NoReturn:
        """Raises what happened as one line with what to do."""
        errors, page = self._errors, f"{self._endpoint}/{self._repository}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        place = f"hf://{self._repository}" + f"/{name}" * bool(name) + f"@{self._asked}" * bool(self._asked)
        login = "log in with `hf auth login` (`huggingface-cli login`) or set HF_TOKEN"
        if isinstance(error, errors.GatedRepoError):
            message = f"access is restricted: accept the conditions at {page}, then {login}"
        elif isinstance(error, errors.RevisionNotFoundError):
            message = f"there is no revision {self._asked!r}: see {page}/commits/main; the form is {FORM}"
        elif isinstance(error, errors.EntryNotFoundError) and status == 404:
            message = f"there is no such file in revision {self.revision}: see {page}/tree/{self.revision}"
        elif isinstance(error, errors.RepositoryNotFoundError) and status != 401:
            message = (
                f"there is no such repository, or it is private: check the name at {page}; if it is yours, {login}"
            )
        elif status == 401:
            message = f"there is no such repository, or it wants another token: check the name at {page}, then {login}"
        elif status is not None and status < 500 and status not in (408, 429):
            message = f"{self._endpoint} refused (HTTP {status}): look at {page}, then {login}"
        else:
            message = f"{self._reason(error)}. {self.how_to_do_without()}"
        raise HubError(f"{place}: {message}") from error
