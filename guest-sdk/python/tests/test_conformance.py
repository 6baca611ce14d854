"""The cases of `wit/conformance.json`, which every SDK's cluster in memory and the host answer alike."""

import json
import pathlib
import unittest

from nagaya import ApiError, kind_of
from nagaya.testing import Cluster

CASES = pathlib.Path(__file__).parents[3] / "wit" / "conformance.json"


def make(api, call):
    at = (call.get("namespace", ""), call.get("name", ""))
    kind = kind_of(f"{call['kind']['apiVersion']}/{call['kind']['kind']}") if "kind" in call else None
    body = call.get("object", call.get("body"))
    text = body if isinstance(body, str) else json.dumps(body)
    match call["call"]:
        case "get":
            return json.loads(api.get(kind, *at))
        case "get-live":
            return json.loads(api.get_live(kind, *at))
        case "list":
            index, value = call.get("index", ("", ""))
            items, following = api.find(kind, at[0], call.get("labels", ""), index, value, call.get("limit", 0), "")
            return {"items": [json.loads(item) for item in items], "next": following}
        case "apply":
            return json.loads(api.apply(text, "standard"))
        case "apply-child":
            return json.loads(api.apply(text, "child"))
        case "apply-forced":
            return json.loads(api.apply(text, "force"))
        case "adopt":
            return json.loads(api.apply(text, "adopt"))
        case "apply-status":
            return json.loads(api.apply_status(text))
        case "create":
            return json.loads(api.create(text, False))
        case "create-child":
            return json.loads(api.create(text, True))
        case "patch-merge":
            return json.loads(api.patch(kind, *at, "merge", text))
        case "patch-json":
            return json.loads(api.patch(kind, *at, "json", text))
        case "delete":
            return api.remove(kind, *at, call.get("uid", ""), "", "background")
        case "event":
            return api.emit_event(kind, *at, "normal", "Probed", "Probe", "")
        case other:
            raise ValueError(other)


def fits(found, expected):
    """Every field that is expected is there and alike; a null means that there is none."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(fits, found, expected))
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(fits(found.get(field), one) for field, one in expected.items())
    return found == expected


class Conformance(unittest.TestCase):
    def test_the_cluster_in_memory_answers_as_the_contract_says(self):
        cluster = Cluster()
        website = {"apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "spec": {}}
        uid = cluster.put({**website, "metadata": {"name": "web", "namespace": "demo"}})["metadata"]["uid"]
        text = CASES.read_text().replace("$other", "another").replace("$namespace", "demo").replace("$name", "web").replace("$uid", uid)
        suite = json.loads(text)
        for obj in suite["objects"]:
            cluster.put(obj)
        cluster.declare(suite["manifest"])
        cluster.begin("examples.nagaya.dev/v1/Website", "web", "demo")
        for case in suite["cases"]:
            with self.subTest(case["name"]):
                expected = case["expect"]
                try:
                    answer = {"ok": make(cluster, case["call"])}
                except ApiError as error:
                    answer = {"error": error.reason}
                if "error" in expected:
                    self.assertEqual(answer, expected)
                else:
                    self.assertTrue("ok" in answer and fits(answer["ok"], expected["ok"]), f"{answer} instead of {expected}")
        self.assertGreater(len(suite["cases"]), 40)
