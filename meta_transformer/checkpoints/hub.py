"""Uploads: a folder's files to a repository of the hub, in one commit."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from .model_card import CARD_NAME

__all__ = ["Repository", "push_files"]


class Repository:
    """A repository of the hub, made if absent.

    Args:
        repo_id: `"owner/name"`, or a name in the own namespace.
        private: Whether a new repository is private; `None` for the account's default.
        token: Access token; by default the one of `hf auth login`.
        revision: Branch to read from and commit to, made if absent; `None` for the main one.
        create_pr: Whether commits become pull requests.
        kind: What it holds, `"model"` or `"dataset"`.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        kind: str = "model",
    ) -> None:
        from .. import __version__  # the package is complete by the time that anything is uploaded

        self.api = HfApi(token=token, library_name="meta_transformer", library_version=__version__)
        self.name = self.api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True).repo_id
        self.revision, self.create_pr, self.kind = revision, create_pr, kind
        if revision is not None and not revision.startswith("refs/pr"):
            self._create_branch(revision)

    def _create_branch(self, revision: str) -> None:
        try:
            self.api.create_branch(self.name, branch=revision, repo_type=self.kind, exist_ok=True)
        except HfHubHTTPError as error:
            # Who may not write can still open a pull request against a branch that is there.
            if not (self.create_pr and error.response.status_code == 403):
                raise

    def card(self) -> str | None:
        """The text of the card that is there, if any."""
        try:
            path = self.api.hf_hub_download(self.name, CARD_NAME, repo_type=self.kind, revision=self.revision)
        except EntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8")

    def upload(
        self,
        folder: Path,
        files: Sequence[str],
        *,
        contents: Mapping[str, bytes] | None = None,
        supersede: Sequence[str] = (),
        commit_message: str | None = None,
        commit_description: str | None = None,
    ) -> CommitInfo:
        """Commit files.

        Args:
            folder: Where the files are.
            files: Their paths relative to it.
            contents: Further files, by path.
            supersede: As of `atomic_folder`. On the hub too, weights of an earlier upload would be found before the
                new ones if one of the two is in shards.
            commit_message: First line of the commit.
            commit_description: The rest of it.

        Returns:
            The commit: `oid`, `commit_url`, `pr_url`.
        """
        there: list[str] = []
        if supersede:
            there = self.api.list_repo_files(self.name, repo_type=self.kind, revision=self.revision)
        old = [name for name in there if any(fnmatchcase(name, pattern) for pattern in supersede)]
        # Not upload_folder, which makes several commits of many files: a reader in between would get a part.
        return self.api.create_commit(
            self.name,
            [
                *(CommitOperationAdd(name, folder / name) for name in sorted(files)),
                *(CommitOperationAdd(name, content) for name, content in (contents or {}).items()),
                *(CommitOperationDelete(name) for name in old if name not in files),
            ],
            commit_message=commit_message or "Upload with meta_transformer",
            commit_description=commit_description,
            repo_type=self.kind,
            revision=self.revision,
            create_pr=self.create_pr,
        )


def push_files(
    folder: Path,
    files: Sequence[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Commit files as they are to a repository, made if absent; arguments as of `Repository` and its `upload`."""
    repository = Repository(repo_id, private=private, token=token, revision=revision, create_pr=create_pr)
    return repository.upload(folder, files, commit_message=commit_message, commit_description=commit_description)
