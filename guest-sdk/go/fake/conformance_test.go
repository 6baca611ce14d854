package fake

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"nagaya.dev/sdk/internal/api"
)

// The cases of wit/conformance.json, which every SDK's cluster in memory and the host answer alike.
func TestTheClusterInMemoryAnswersAsTheContractSays(t *testing.T) {
	text, err := os.ReadFile("../../../wit/conformance.json")
	if err != nil {
		t.Fatal(err)
	}
	cluster := New()
	website := object{
		"apiVersion": "examples.nagaya.dev/v1", "kind": "Website", "metadata": object{"name": "web", "namespace": "demo"}, "spec": object{},
	}
	if err := cluster.Put(website); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Begin("examples.nagaya.dev/v1/Website", "demo", "web"); err != nil {
		t.Fatal(err)
	}
	words := strings.NewReplacer("$other", "another", "$namespace", "demo", "$name", "web", "$uid", cluster.uid)
	var suite struct {
		Manifest json.RawMessage
		Objects  []object
		Cases    []struct {
			Name         string
			Call, Expect object
		}
	}
	if err := json.Unmarshal([]byte(words.Replace(string(text))), &suite); err != nil {
		t.Fatal(err)
	}
	for _, one := range suite.Objects {
		if err := cluster.Put(one); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.Declare(string(suite.Manifest)); err != nil {
		t.Fatal(err)
	}
	for _, one := range suite.Cases {
		t.Run(one.Name, func(t *testing.T) {
			answer, err := call(cluster, one.Call)
			var refused *api.Error
			if wanted, is := one.Expect["error"]; is {
				if !errors.As(err, &refused) || refused.Reason != wanted {
					t.Errorf("%v, %v instead of %v", answer, err, one.Expect)
				}
			} else if err != nil || !fits(answer, one.Expect["ok"]) {
				t.Errorf("%v, %v instead of %v", answer, err, one.Expect)
			}
		})
	}
	if len(suite.Cases) < 40 {
		t.Error("cases are missing")
	}
}

func call(c *Cluster, of object) (any, error) {
	word := func(field string) string { text, _ := of[field].(string); return text }
	var kind api.Kind
	if one, is := of["kind"].(object); is {
		kind, _ = kindOf(one)
	}
	body := of["object"]
	if body == nil {
		body = of["body"]
	}
	text, is := body.(string)
	if !is {
		text = write(body)
	}
	read := func(answer string, err error) (any, error) {
		var value any
		if err == nil {
			err = json.Unmarshal([]byte(answer), &value)
		}
		return value, err
	}
	switch word("call") {
	case "get":
		return read(c.Get(kind, word("namespace"), word("name")))
	case "get-live":
		return read(c.GetLive(kind, word("namespace"), word("name")))
	case "list":
		find := api.Find{Namespace: word("namespace"), Labels: word("labels")}
		if index, is := of["index"].([]any); is {
			find.Index, find.Value = index[0].(string), index[1].(string)
		}
		if limit, is := of["limit"].(float64); is {
			find.Limit = uint32(limit)
		}
		items, next, err := c.Find(kind, find)
		if err != nil {
			return nil, err
		}
		return read(`{"items":[`+strings.Join(items, ",")+`],"next":"`+next+`"}`, nil)
	case "apply":
		return read(c.Apply(text, api.Standard))
	case "apply-child":
		return read(c.Apply(text, api.Child))
	case "apply-forced":
		return read(c.Apply(text, api.Force))
	case "adopt":
		return read(c.Apply(text, api.Adopt))
	case "apply-status":
		return read(c.ApplyStatus(text))
	case "create":
		return read(c.Create(text, false))
	case "create-child":
		return read(c.Create(text, true))
	case "patch-merge":
		return read(c.Patch(kind, word("namespace"), word("name"), true, text))
	case "patch-json":
		return read(c.Patch(kind, word("namespace"), word("name"), false, text))
	case "delete":
		return nil, c.Remove(kind, word("namespace"), word("name"), word("uid"), "", 0)
	case "event":
		return nil, c.EmitEvent(api.Event{Kind: kind, Namespace: word("namespace"), Name: word("name")})
	default:
		return nil, errors.New("no call " + word("call"))
	}
}

// fits says whether every field that is expected is there and alike; a null means that there is none.
func fits(found, expected any) bool {
	switch of := expected.(type) {
	case []any:
		list, is := found.([]any)
		if !is || len(list) != len(of) {
			return false
		}
		for i := range of {
			if !fits(list[i], of[i]) {
				return false
			}
		}
		return true
	case object:
		fields, is := found.(object)
		for field, one := range of {
			if !fits(fields[field], one) {
				return false
			}
		}
		return is
	default:
		return found == expected
	}
}
