package nagaya

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"nagaya.dev/sdk/internal/api"
)

// Context is what a controller may do while it runs: the cluster as its ServiceAccount, and the runtime.
type Context struct{ host api.Host }

// head is what is read of any object.
type head struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   ObjectMeta `json:"metadata"`
}

func (h head) kind() string { return h.APIVersion + "/" + h.Kind }

// decode reads an object; numbers of `any` keep their digits.
func decode(text string, into any) error {
	from := json.NewDecoder(strings.NewReader(text))
	from.UseNumber()
	if err := from.Decode(into); err != nil {
		return Terminal("the object does not have the expected form: %w", err)
	}
	return nil
}

func headOf(object any) (head, string, error) {
	var of head
	text, err := json.Marshal(object)
	if err != nil {
		return of, "", Terminal("cannot write a %T: %w", object, err)
	}
	return of, string(text), decode(string(text), &of)
}

// What only the server writes.
var server = []string{
	"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields", "selfLink",
}

// sent is what an apply sends of an object: without its status, and without what only the server writes.
func sent(object any, keepsStatus bool) (string, error) {
	_, text, err := headOf(object)
	if err != nil {
		return "", err
	}
	var fields, metadata map[string]json.RawMessage
	if err := decode(text, &fields); err != nil {
		return "", err
	}
	if err := decode(string(fields["metadata"]), &metadata); err != nil {
		return "", err
	}
	for _, field := range server {
		delete(metadata, field)
	}
	if !keepsStatus {
		delete(fields, "status")
	}
	if fields["metadata"], err = json.Marshal(metadata); err != nil {
		return "", Terminal("cannot write a %T: %w", object, err)
	}
	left, err := json.Marshal(fields)
	return string(left), err
}

func read(answer string, err error, into any) (bool, error) {
	if Is(err, "not-found") {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, decode(answer, into)
}

// Get reads one object of a watched kind from the host's cache into `into`; false: there is none.
func (c Context) Get(kind, namespace, name string, into any) (bool, error) {
	of, err := api.ParseKind(kind)
	if err != nil {
		return false, err
	}
	answer, err := c.host.Get(of, namespace, name)
	return read(answer, err, into)
}

// GetLive reads one object from the API server. Secrets are read in no other way.
func (c Context) GetLive(kind, namespace, name string, into any) (bool, error) {
	of, err := api.ParseKind(kind)
	if err != nil {
		return false, err
	}
	answer, err := c.host.GetLive(of, namespace, name)
	return read(answer, err, into)
}

// Find says which objects List returns; empty fields select all.
type Find struct {
	Namespace string
	// Labels is a label selector.
	Labels string
	// Index is the name of an index of the manifest, Value what is looked up in it.
	Index, Value string
}

// List reads objects of a watched kind from the host's cache, in the order of namespace and name.
func List[T any](c Context, kind string, find Find) ([]T, error) {
	of, err := api.ParseKind(kind)
	if err != nil {
		return nil, err
	}
	by := api.Find{Namespace: find.Namespace, Labels: find.Labels, Index: find.Index, Value: find.Value}
	var all []T
	for {
		items, next, err := c.host.Find(of, by)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			var one T
			if err := decode(item, &one); err != nil {
				return nil, err
			}
			all = append(all, one)
		}
		if next == "" {
			return all, nil
		}
		by.After = next
	}
}

func (c Context) apply(object any, ownership api.Ownership) error {
	text, err := sent(object, false)
	if err != nil {
		return err
	}
	_, err = c.host.Apply(text, ownership)
	return err
}

// Apply is server-side apply: the object will have these fields, and those of the last apply that are missing here go away. A
// field of another manager's is taken over in the primary's children, elsewhere it is a conflict.
func (c Context) Apply(object any) error { return c.apply(object, api.Standard) }

// ApplyChild is as Apply, and the object becomes the primary's child: the host adds the owner reference.
func (c Context) ApplyChild(object any) error { return c.apply(object, api.Child) }

// ApplyForced is as Apply, and fields of others are taken over in any case.
func (c Context) ApplyForced(object any) error { return c.apply(object, api.Force) }

// Adopt is as ApplyChild and ApplyForced, and an object that is nobody's becomes the primary's child.
func (c Context) Adopt(object any) error { return c.apply(object, api.Adopt) }

// ApplyStatus is server-side apply of the status of object, mostly the primary: state it whole and anew in each run.
func (c Context) ApplyStatus(object, status any) error {
	of, _, err := headOf(object)
	if err != nil {
		return err
	}
	metadata := ObjectMeta{Name: of.Metadata.Name, Namespace: of.Metadata.Namespace, UID: of.Metadata.UID}
	body := map[string]any{"apiVersion": of.APIVersion, "kind": of.Kind, "metadata": metadata, "status": status}
	text, err := json.Marshal(body)
	if err != nil {
		return Terminal("cannot write a %T: %w", status, err)
	}
	_, err = c.host.ApplyStatus(string(text))
	return err
}

// Create creates an object; metadata.generateName is allowed. The object as it is then is read into `into`, unless that is nil.
func (c Context) Create(object any, child bool, into any) error {
	text, err := sent(object, true)
	if err != nil {
		return err
	}
	answer, err := c.host.Create(text, child)
	if err != nil || into == nil {
		return err
	}
	return decode(answer, into)
}

// Patch patches an object: a slice is a JSON patch, anything else a merge patch.
func (c Context) Patch(kind, namespace, name string, body any) error {
	of, err := api.ParseKind(kind)
	if err != nil {
		return err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return Terminal("cannot write a %T: %w", body, err)
	}
	_, err = c.host.Patch(of, namespace, name, !strings.HasPrefix(string(text), "["), string(text))
	return err
}

// Delete deletes an object; one that is gone already is no error. If it was read and is another by now, it is a conflict.
func (c Context) Delete(object any) error {
	of, _, err := headOf(object)
	if err != nil {
		return err
	}
	kind, err := api.ParseKind(of.kind())
	if err != nil {
		return err
	}
	at := of.Metadata
	err = c.host.Remove(kind, at.Namespace, at.Name, at.UID, at.ResourceVersion, 0)
	if Is(err, "not-found") {
		return nil
	}
	return err
}

// RemoveFinalizer takes a finalizer away: the cleanup is done. Nothing happens if it is not there.
func (c Context) RemoveFinalizer(object any, finalizer string) error {
	of, _, err := headOf(object)
	if err != nil {
		return err
	}
	at := slices.Index(of.Metadata.Finalizers, finalizer)
	if at < 0 {
		return nil
	}
	path := fmt.Sprintf("/metadata/finalizers/%d", at)
	err = c.Patch(of.kind(), of.Metadata.Namespace, of.Metadata.Name, []map[string]any{
		{"op": "test", "path": "/metadata/uid", "value": of.Metadata.UID},
		{"op": "test", "path": path, "value": finalizer},
		{"op": "remove", "path": path},
	})
	if Is(err, "not-found") {
		return nil
	}
	return err
}

// Condition is one for the status of object: its generation, and the date of the one of its type among before (the conditions
// that were read) unless the status has changed.
func (c Context) Condition(object any, before []Condition, one Condition) Condition {
	of, _, _ := headOf(object)
	one.ObservedGeneration = of.Metadata.Generation
	one.LastTransitionTime = c.Now().Format(time.RFC3339)
	for _, old := range before {
		if old.Type == one.Type && old.Status == one.Status {
			one.LastTransitionTime = old.LastTransitionTime
		}
	}
	return one
}

// Event tells people about an object of a declared kind; reason and action are one CamelCase word each.
func (c Context) Event(object any, warning bool, reason, action, note string) error {
	of, _, err := headOf(object)
	if err != nil {
		return err
	}
	kind, err := api.ParseKind(of.kind())
	if err != nil {
		return err
	}
	return c.host.EmitEvent(api.Event{
		Kind: kind, Namespace: of.Metadata.Namespace, Name: of.Metadata.Name,
		Warning: warning, Reason: reason, Action: action, Note: note,
	})
}

// Now is the time, in whole milliseconds.
func (c Context) Now() time.Time { return time.UnixMilli(int64(c.host.Now())).UTC() }

// Random are random bytes.
func (c Context) Random(length uint32) []byte { return c.host.Random(length) }

// Config reads spec.config of the WasmController into `into`; an absent one changes nothing.
func (c Context) Config(into any) error {
	if err := json.Unmarshal([]byte(c.host.Config()), into); err != nil {
		return Terminal("cannot read the config: %w", err)
	}
	return nil
}

// Log writes a line to the log, with controller, revision, object and run added by the host. Fields are keys and values in turn.
func (c Context) Log(message string, fields ...string) {
	pairs := make([]api.Field, 0, len(fields)/2)
	for i := 0; i+1 < len(fields); i += 2 {
		pairs = append(pairs, api.Field{Key: fields[i], Value: fields[i+1]})
	}
	c.host.Log(2, message, pairs)
}
