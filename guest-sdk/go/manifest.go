package nagaya

import (
	"encoding/json"
	"slices"

	"nagaya.dev/sdk/internal/api"
)

// Watch is a kind and how it is watched.
type Watch struct {
	// Kind is apiVersion and kind in one word: "apps/v1/Deployment", "v1/ConfigMap".
	Kind string
	// Projection is "full" or "metadata"; empty: metadata for what is owned, full for what is watched besides.
	Projection string
	// Labels and Fields select objects on the server.
	Labels, Fields string
	// When says which changes count; nil: all.
	When When
	// Wakes says which primaries a change wakes. What is owned wakes its controller.
	Wakes Wakes
}

// When is a condition on a change, as the manifest's schema has it; see Changed, MatchesLabels, All, Any and Not.
type When any

// The conditions without arguments.
const (
	GenerationChanged      = "generationChanged"
	ResourceVersionChanged = "resourceVersionChanged"
	LabelsChanged          = "labelsChanged"
	AnnotationsChanged     = "annotationsChanged"
)

// MatchesLabels holds for an object that matches the label selector before or after the change.
func MatchesLabels(selector string) When { return map[string]any{"matchesLabels": selector} }

// All holds if all of these do.
func All(of ...When) When { return map[string]any{"all": of} }

// Any holds if one of these does.
func Any(of ...When) When { return map[string]any{"any": of} }

// Not holds if this does not.
func Not(of When) When { return map[string]any{"not": of} }

// Wakes is a mapping, as the manifest's schema has it; see Label, Annotation, Field and Index.
type Wakes any

// The mappings without arguments.
const (
	Same       = "same"
	Owner      = "owner"
	Controlled = "controller"
	Every      = "every"
)

func place(way string, name, namespace string) Wakes {
	at := map[string]string{"name": name}
	if namespace != "" {
		at["namespace"] = namespace
	}
	return map[string]any{way: at}
}

// Label wakes the primary whose name and namespace stand in these labels; without the second, in the object's own namespace.
func Label(name, namespace string) Wakes { return place("label", name, namespace) }

// Annotation is the same with annotations.
func Annotation(name, namespace string) Wakes { return place("annotation", name, namespace) }

// Field is the same with fields ("spec.claimRef.name"); the watch must be full.
func Field(name, namespace string) Wakes { return place("field", name, namespace) }

// ByIndex wakes the primaries in whose index of this name the changed object's name stands.
func ByIndex(name string) Wakes { return map[string]any{"index": name} }

// Verbs are what is done to objects of a kind: create, apply, applyStatus, patch, delete.
type Verbs []string

// Index is a named index over a field of a watched kind.
type Index struct{ Name, Kind, Path string }

// Needs is what a controller needs; what it does not name is refused at run time.
type Needs struct {
	// Primary is the reconciled kind: how it is watched.
	Primary Watch
	// Owns are kinds that the controller makes and applies, with the primary as their controller.
	Owns []Watch
	// Watches are other kinds whose changes wake primaries, or that are read from the cache.
	Watches []Watch
	// ReadsLive are kinds that are only read by GetLive.
	ReadsLive []string
	// Writes are kinds that are written besides. What Owns names may be applied without a word.
	Writes map[string]Verbs
	// Indexes are over fields of watched kinds.
	Indexes []Index
	// Status says that the primary's status is applied.
	Status bool
	// Finalizer is added by the host before the first run of an object.
	Finalizer string
}

func named(kind string) (map[string]any, error) {
	of, err := api.ParseKind(kind)
	if err != nil {
		return nil, err
	}
	return map[string]any{"apiVersion": of.APIVersion(), "kind": of.Name}, nil
}

func (w Watch) text() (map[string]any, error) {
	text, err := named(w.Kind)
	if err != nil {
		return nil, err
	}
	for field, value := range map[string]string{"projection": w.Projection, "labelSelector": w.Labels, "fieldSelector": w.Fields} {
		if value != "" {
			text[field] = value
		}
	}
	if w.When != nil {
		text["when"] = w.When
	}
	if w.Wakes != nil {
		text["wakes"] = w.Wakes
	}
	return text, nil
}

// Manifest is what describe answers.
func (n Needs) Manifest() (string, error) {
	verbs := map[string]Verbs{}
	may := func(kind, verb string) {
		if !slices.Contains(verbs[kind], verb) {
			verbs[kind] = append(verbs[kind], verb)
		}
	}
	for kind, these := range n.Writes {
		verbs[kind] = slices.Clone(these)
	}
	for _, one := range n.Owns {
		may(one.Kind, "apply")
	}
	if n.Status {
		may(n.Primary.Kind, "applyStatus")
	}
	if n.Finalizer != "" {
		may(n.Primary.Kind, "patch")
	}
	primary, err := n.Primary.text()
	if err != nil {
		return "", err
	}
	whole := map[string]any{"primary": primary}
	add := func(field string, one map[string]any) {
		list, _ := whole[field].([]map[string]any)
		whole[field] = append(list, one)
	}
	for field, watches := range map[string][]Watch{"owns": n.Owns, "watches": n.Watches} {
		for _, one := range watches {
			text, err := one.text()
			if err != nil {
				return "", err
			}
			add(field, text)
		}
	}
	for _, kind := range n.ReadsLive {
		text, err := named(kind)
		if err != nil {
			return "", err
		}
		add("readsLive", text)
	}
	kinds := make([]string, 0, len(verbs))
	for kind := range verbs {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		text, err := named(kind)
		if err != nil {
			return "", err
		}
		text["verbs"] = verbs[kind]
		add("writes", text)
	}
	for _, one := range n.Indexes {
		text, err := named(one.Kind)
		if err != nil {
			return "", err
		}
		text["name"], text["path"] = one.Name, one.Path
		add("indexes", text)
	}
	if n.Finalizer != "" {
		whole["finalizer"] = n.Finalizer
	}
	text, err := json.Marshal(whole)
	return string(text), err
}
