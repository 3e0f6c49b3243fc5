"""The few requests that a nightly run makes of GitHub, through the command ``gh``, in one repository of our own."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from urllib.parse import urlencode

from .project import BuildError
from .steps import run


class GitHub:
    """One repository.

    Every method raises BuildError with GitHub's own words where GitHub refuses.
    """

    def __init__(self, repository: str, base: str = "main"):
        self.repository, self.base = repository, base
        if shutil.which("gh") is None:
            raise BuildError("gh is not there. Install it (https://cli.github.com), then: gh auth login")

    def _ask(self, method: str, path: str, fields: dict | None = None, *, fail: str):
        """One request; ``fields`` are the query of a GET and the body of any other."""
        command = ["gh", "api", "--method", method, f"repos/{self.repository}/{path}"]
        if method == "GET":
            command[-1] += f"?{urlencode(fields)}" if fields else ""
            said = run(command, env=_environment(), fail=fail)
        else:
            said = run([*command, "--input", "-"], env=_environment(), fail=fail, stdin=json.dumps(fields))
        return json.loads(said) if said.strip() else None

    # // the one issue

    def find_issue(self, label: str) -> int | None:
        """The number of the oldest open issue with a label. Lists are current at once, which a search is not."""
        query = {"labels": label, "state": "open", "per_page": 100}
        found = self._ask("GET", "issues", query, fail="cannot list issues")
        # for GitHub a pull request is an issue too
        return min((one["number"] for one in found if "pull_request" not in one), default=None)

    def put_issue(self, label: str, title: str, body: str) -> int:
        """Opens the issue of a label, or gives the open one a new text; returns its number."""
        text = {"title": title, "body": body}
        if number := self.find_issue(label):
            self._ask("PATCH", f"issues/{number}", text, fail=f"cannot refresh issue #{number}")
            return number
        return self._ask("POST", "issues", text | {"labels": [label]}, fail="cannot open an issue")["number"]

    def close_issue(self, label: str, why: str) -> int | None:
        """Closes the issue of a label with a last word; returns its number, None where none is open."""
        if number := self.find_issue(label):
            self._ask("POST", f"issues/{number}/comments", {"body": why}, fail=f"cannot comment on issue #{number}")
            self._ask("PATCH", f"issues/{number}", {"state": "closed"}, fail=f"cannot close issue #{number}")
        return number

    # // the one pull request

    def put_pull(self, branch: str, title: str, body: str) -> int:
        """Opens the pull request of a branch, or gives the open one a new text; returns its number."""
        head = f"{self.repository.partition('/')[0]}:{branch}"
        found = self._ask("GET", "pulls", {"head": head, "state": "open"}, fail="cannot list pull requests")
        text = {"title": title, "body": body}
        if found:
            number = found[0]["number"]
            self._ask("PATCH", f"pulls/{number}", text, fail=f"cannot refresh pull request #{number}")
            return number
        fail = (
            "cannot open a pull request (if GitHub says that it is not permitted: Settings, Actions, General, "
            "'Allow GitHub Actions to create and approve pull requests')"
        )
        return self._ask("POST", "pulls", text | {"head": branch, "base": self.base}, fail=fail)["number"]

    # // runs

    def start_workflow(self, file: str, branch: str) -> None:
        path = f"actions/workflows/{file}/dispatches"
        self._ask("POST", path, {"ref": branch}, fail=f"cannot start {file} on {branch}")

    def last_success(self, file: str) -> datetime:
        """When a workflow last passed on the base branch, or, where it never has, when it was set up."""
        path, fail = f"actions/workflows/{file}", f"cannot read the runs of {file}"
        query = {"branch": self.base, "status": "success", "per_page": 1}
        runs = self._ask("GET", f"{path}/runs", query, fail=fail)["workflow_runs"]
        said = runs[0]["updated_at"] if runs else self._ask("GET", path, fail=fail)["created_at"]
        return datetime.fromisoformat(said)


def _environment() -> dict[str, str]:
    # anything but the answer on the output would not be JSON
    return os.environ | {"GH_PROMPT_DISABLED": "1", "GH_NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1"}
