// Each Greeting has a ConfigMap with its words: the reconciler of the README, in Go.
package main

import "nagaya.dev/sdk"

// Greeting is a greeting for somebody.
type Greeting struct {
	nagaya.Resource
	Spec struct {
		Name string `json:"name"`
	} `json:"spec"`
}

var greeter = nagaya.Controller[Greeting]{
	Needs: nagaya.Needs{
		Primary: nagaya.Watch{Kind: "examples.nagaya.dev/v1/Greeting"},
		Owns:    []nagaya.Watch{{Kind: "v1/ConfigMap"}},
	},
	Reconcile: func(greeting *Greeting, cx nagaya.Context) (nagaya.Result, error) {
		words := nagaya.ConfigMap{Resource: nagaya.New("v1/ConfigMap", greeting.Metadata.Name, greeting.Resource)}
		words.Data = map[string]string{"words": "Hello, " + greeting.Spec.Name + "!"}
		return nagaya.Result{}, cx.ApplyChild(words)
	},
}

func init() { nagaya.Export(greeter) }

func main() {}
