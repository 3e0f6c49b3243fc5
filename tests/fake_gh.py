"""``gh api`` of one repository that lives in the file FAKE_GH_STATE, as far as ci/github.py asks."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs

FILE = Path(os.environ["FAKE_GH_STATE"])


def answer(state: dict, method: str, path: str, query: dict[str, str], fields: dict):
    kind, _, number = path.partition("/")
    if f"{method} {kind}" in state["refused"]:
        sys.exit("gh: not permitted (HTTP 403)")
    if kind == "actions":
        return actions(state, method, path, query, fields)
    if method == "GET":
        return [one for one in state[kind] if one["state"] == query["state"] and chosen(one, query)]
    if method == "POST" and (found := re.fullmatch(r"issues/(\d+)/comments", path)):
        return state["comments"].append([int(found[1]), fields["body"]])
    if method == "POST":
        used = [other["number"] for other in state["issues"] + state["pulls"]]
        one = {"number": max(used, default=0) + 1, "state": "open"} | fields
        state[kind].append(one)
        return one
    (one,) = [one for one in state[kind] if one["number"] == int(number)]
    one.update(fields)
    return one


def chosen(one: dict, query: dict[str, str]) -> bool:
    if "labels" in query:
        return query["labels"] in one["labels"]
    return query["head"] == f"owner:{one['head']}"


def actions(state: dict, method: str, path: str, query: dict[str, str], fields: dict):
    file, verb = re.fullmatch(r"actions/workflows/([\w.]+)(?:/(\w+))?", path).groups()
    if method == "POST" and verb == "dispatches":
        return state["started"].append([file, fields["ref"]])
    if verb == "runs":
        assert query == {"branch": "main", "status": "success", "per_page": "1"}
        return {"workflow_runs": [{"updated_at": date} for date in state["runs"]]}
    return {"created_at": state["created"]}


def main() -> None:
    api, option, method, path, *rest = sys.argv[1:]
    assert (api, option) == ("api", "--method") and rest in ([], ["--input", "-"])
    path, _, query = path.removeprefix("repos/owner/name/").partition("?")
    state = json.loads(FILE.read_text())
    said = answer(state, method, path, {key: value[0] for key, value in parse_qs(query).items()},
                  json.load(sys.stdin) if rest else {})
    FILE.write_text(json.dumps(state))
    if said is not None:
        print(json.dumps(said))


main()
