import json
import pathlib
import unittest

from nagaya import ApiError, Invalid, Terminal, compose, controller, manifest, meta, quantity
from nagaya.testing import Cluster

SITE = "example.com/v1/Site"
WIT = pathlib.Path(__file__).parents[3] / "wit"


def site(title="One", pages=()):
    metadata = {"name": "web", "namespace": "demo"}
    return {"apiVersion": "example.com/v1", "kind": "Site", "metadata": metadata, "spec": {"title": title, "pages": list(pages)}}


def config_map(name, data, **metadata):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": data}


class Sdk(unittest.TestCase):
    def test_the_published_example_is_what_the_builder_makes(self):
        published = json.loads((WIT / "manifest.example.json").read_text())
        del published["http"]
        made = manifest(
            {
                "kind": SITE,
                "labelSelector": "tier=web",
                "fieldSelector": "metadata.namespace!=kube-system",
                "when": {"any": ["generationChanged", "annotationsChanged"]},
            },
            writes={"v1/ConfigMap": ["create", "apply", "applyStatus", "patch", "delete"]},
            owns=[
                {
                    "kind": "apps/v1/Deployment",
                    "projection": "full",
                    "when": {"all": ["generationChanged", {"not": {"matchesLabels": "paused"}}]},
                },
                {"kind": "v1/ConfigMap", "labelSelector": "made-by=site"},
            ],
            watches=[
                {"kind": "example.com/v1/Theme", "wakes": "same"},
                {"kind": "example.com/v1/Theme", "wakes": "owner", "when": "labelsChanged"},
                {"kind": "v1/Service", "projection": "metadata", "wakes": "controller"},
                {
                    "kind": "v1/ConfigMap", "fieldSelector": "metadata.name=defaults", "wakes": "every",
                    "when": "resourceVersionChanged",
                },
                {
                    "kind": "v1/Pod", "projection": "metadata",
                    "wakes": {"label": {"name": "example.com/site", "namespace": "example.com/site-namespace"}},
                },
                {"kind": "v1/Namespace", "projection": "metadata", "wakes": {"annotation": {"name": "example.com/site"}}},
                {
                    "kind": "example.com/v1/Claim",
                    "wakes": {"field": {"name": "spec.site.name", "namespace": "spec.site.namespace"}},
                },
                {"kind": "v1/Secret", "projection": "metadata", "wakes": {"index": "by-secret"}},
            ],
            reads_live=["v1/Secret"],
            indexes=[("by-secret", SITE, "spec.secretName")],
            finalizer="example.com/cleanup",
        )
        # The builder knows that a finalizer is taken away by a patch.
        self.assertEqual(made["writes"].pop()["kind"], "Site")
        self.assertEqual(made, published)

    def test_quantities_are_exact(self):
        nano = 10**9
        for text, value in [
            ("1", nano), ("100m", nano // 10), ("1.5Gi", 3 * 2**29 * nano), ("2e3", 2000 * nano), ("-1k", -1000 * nano),
            ("9007199254740993", 9007199254740993 * nano), ("1n", 1), ("0.1n", 1), (".5", nano // 2), ("12E", 12 * 10**27),
        ]:
            self.assertEqual(quantity(text), value, text)
        for text in ["", "1 Gi", "Gi", "1.5.5", "1KiB", ".", "0x1"]:
            self.assertRaises(ValueError, quantity, text)

    def test_a_child_and_a_status_and_a_second_run_changes_nothing(self):
        @controller(SITE, owns=["v1/ConfigMap"], status=True)
        def guest(obj, cx):
            cx.apply_child({**config_map("web", {"title": obj["spec"]["title"]}), "metadata": meta(obj)})
            before = obj.get("status", {}).get("conditions")
            cx.apply_status(obj, {"conditions": [cx.condition(obj, before, "Ready", True, "Applied")]})

        cluster = Cluster()
        uid = cluster.put(site())["metadata"]["uid"]
        self.assertEqual(cluster.run(guest, "web", "demo"), ("await-change", None))
        child = cluster.object("v1/ConfigMap", "web", "demo")
        self.assertEqual(child["metadata"]["ownerReferences"][0]["uid"], uid)
        before = cluster.writes
        cluster.advance(60)
        cluster.run(guest, "web", "demo")
        self.assertEqual(cluster.writes, before)
        condition = cluster.object(SITE, "web", "demo")["status"]["conditions"][0]
        self.assertEqual(condition["lastTransitionTime"], "2026-01-01T00:00:00Z")

    def test_whatever_is_raised_is_an_answer_with_its_words(self):
        cluster = Cluster()
        cluster.put(site())

        def raising(error):
            @controller(SITE)
            def guest(obj, cx):
                raise error

            return cluster.run(guest, "web", "demo")

        self.assertEqual(raising(Terminal("no")), ("terminal", "no"))
        self.assertEqual(raising(Invalid("bad")), ("invalid", "bad"))
        self.assertEqual(raising(ApiError("conflict", "m")), ("retry", "ApiError: conflict: m"))
        self.assertEqual(raising(ApiError("invalid", "m")), ("terminal", "ApiError: invalid: m"))
        self.assertEqual(raising(KeyError("x")), ("retry", "KeyError: 'x'"))
        self.assertRegex(cluster.lines[-1], r"^error KeyError: 'x'\n(.*\n)*.*test_sdk.py")

    def test_a_finalizer_is_there_before_the_first_run_and_goes_with_the_cleanup(self):
        finalizer = "example.com/cleanup"

        @controller(SITE, finalizer=finalizer, deleting=lambda obj, cx: cx.remove_finalizer(obj, finalizer), gone=lambda *_: 5)
        def guest(obj, cx):
            self.assertEqual(obj["metadata"]["finalizers"], [finalizer])

        cluster = Cluster()
        cluster.put(site())
        self.assertEqual(cluster.run(guest, "web", "demo"), ("await-change", None))
        cluster.delete(SITE, "web", "demo")
        self.assertIsNotNone(cluster.object(SITE, "web", "demo"))
        cluster.run(guest, "web", "demo")
        self.assertIsNone(cluster.object(SITE, "web", "demo"))
        self.assertEqual(cluster.run(guest, "web", "demo"), ("requeue-after", 5000))

    def test_a_composer_applies_what_is_wanted_and_takes_away_what_is_not(self):
        @compose(SITE, children=["v1/ConfigMap"], status=True)
        def guest(parent, children, cx):
            return [config_map(f"web-{page}", {"page": page}) for page in parent["spec"]["pages"]], {"seen": len(children)}

        cluster = Cluster()
        cluster.put(config_map("web-theirs", {}, namespace="demo"))
        for pages, seen in [("ab", 0), ("bc", 2), ("", 2)]:
            cluster.put(site(pages=pages))
            self.assertEqual(cluster.run(guest, "web", "demo"), ("await-change", None))
            names = [one["metadata"]["name"] for one in cluster.objects("v1/ConfigMap")]
            self.assertEqual(names, sorted(["web-theirs", *(f"web-{page}" for page in pages)]))
            self.assertEqual(cluster.object(SITE, "web", "demo")["status"]["seen"], seen)
        cluster.put(site(pages="aa"))
        self.assertIn("two children v1/ConfigMap demo/web-a", cluster.run(guest, "web", "demo")[1])

    def test_lists_come_in_pages_by_selector_and_by_index(self):
        cluster, counts = Cluster(), []
        cluster.put(site())
        for at in range(25):
            cluster.put(config_map(f"m-{at}", {"of": "odd" if at % 2 else "even"}, namespace="demo", labels={"third": str(at % 3)}))

        kind = "v1/ConfigMap"

        @controller(SITE, watches=[{"kind": kind, "wakes": "same"}], indexes=[("of", kind, "data.of")])
        def guest(obj, cx):
            counts.extend([len(cx.list(kind)), len(cx.list(kind, labels="third=0"))])
            counts.extend([len(cx.list(kind, index=("of", "odd"))), len(cx.list(kind, namespace="other"))])

        self.assertEqual(cluster.run(guest, "web", "demo"), ("await-change", None))
        self.assertEqual(counts, [25, 9, 12, 0])

    def test_the_time_is_that_of_the_calendar(self):
        import datetime

        cluster = Cluster()
        for day in range(0, 60_000, 37):
            cluster._now = (day * 86_400 + day) * 1000
            expected = datetime.datetime.fromtimestamp(day * 86_400 + day, datetime.timezone.utc)
            self.assertEqual(cluster.context().timestamp(), expected.strftime("%Y-%m-%dT%H:%M:%SZ"))


if __name__ == "__main__":
    unittest.main()
