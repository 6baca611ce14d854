import unittest

from nagaya.testing import Cluster

from app import Guest


class First(unittest.TestCase):
    def test_a_greeting_has_its_words_and_hears_of_a_change(self):
        cluster = Cluster()
        for name in ["Nagaya", "neighbour"]:
            metadata = {"name": "first", "namespace": "demo"}
            greeting = {"apiVersion": "examples.nagaya.dev/v1", "kind": "Greeting", "metadata": metadata, "spec": {"name": name}}
            cluster.put(greeting)
            self.assertEqual(cluster.run(Guest, "first", "demo"), ("await-change", None))
            child = cluster.object("v1/ConfigMap", "first", "demo")
            self.assertEqual(child["data"], {"words": f"Hello, {name}!"})
            self.assertEqual(child["metadata"]["ownerReferences"][0]["kind"], "Greeting")


if __name__ == "__main__":
    unittest.main()
