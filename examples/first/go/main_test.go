package main

import (
	"testing"

	"nagaya.dev/sdk"
	"nagaya.dev/sdk/fake"
)

func TestAGreetingHasItsWordsAndHearsOfAChange(t *testing.T) {
	cluster := fake.New()
	greeting := Greeting{Resource: nagaya.New(greeter.Primary.Kind, "first", nagaya.Resource{})}
	greeting.Metadata.Namespace = "demo"
	for _, name := range []string{"Nagaya", "neighbour"} {
		greeting.Spec.Name = name
		if err := cluster.Put(greeting); err != nil {
			t.Fatal(err)
		}
		if outcome, err := cluster.Run(greeter, "demo", "first"); err != nil || outcome.Way != "await-change" {
			t.Fatal(outcome, err)
		}
		var words nagaya.ConfigMap
		if _, err := cluster.Object("v1/ConfigMap", "demo", "first", &words); err != nil {
			t.Fatal(err)
		}
		if words.Data["words"] != "Hello, "+name+"!" || words.Metadata.OwnerReferences[0].Kind != "Greeting" {
			t.Errorf("%+v", words)
		}
	}
}
