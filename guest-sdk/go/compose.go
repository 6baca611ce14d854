package nagaya

import (
	"encoding/json"
	"fmt"
)

// Composed is what there should be of a parent.
type Composed struct {
	// Children are objects with apiVersion, kind and a name; those without a namespace get the parent's. For a cluster-scoped child of
	// a cluster-scoped parent there is none anyway.
	Children []any
	// Status is the parent's; nil: it is left alone.
	Status any
	Result
}

// Children are a parent's children as they are.
type Children []json.RawMessage

// Composer says what there should be of a parent; the SDK applies it and deletes children that are no longer wanted.
type Composer[T any] struct {
	// Needs without Owns and Writes of the children.
	Needs
	// Children are the kinds of the children.
	Children []string
	// Sync writes nothing and orders nothing.
	Sync func(parent *T, children Children, cx Context) (Composed, error)
}

// Compose makes a controller of it.
func Compose[T any](of Composer[T]) Controller[T] {
	needs := of.Needs
	writes := map[string]Verbs{}
	for kind, verbs := range needs.Writes {
		writes[kind] = verbs
	}
	for _, kind := range of.Children {
		needs.Owns = append(needs.Owns, Watch{Kind: kind, Projection: "full"})
		writes[kind] = Verbs{"apply", "delete"}
	}
	needs.Writes = writes
	return Controller[T]{Needs: needs, Reconcile: func(parent *T, cx Context) (Result, error) {
		return of.reconcile(parent, cx)
	}}
}

type child struct {
	head
	text json.RawMessage
}

func (c child) key() string {
	return fmt.Sprintf("%s %s/%s", c.kind(), c.Metadata.Namespace, c.Metadata.Name)
}

func (of Composer[T]) reconcile(parent *T, cx Context) (Result, error) {
	at, _, err := headOf(parent)
	if err != nil {
		return Result{}, err
	}
	var present []child
	var texts Children
	for _, kind := range of.Children {
		all, err := List[json.RawMessage](cx, kind, Find{Namespace: at.Metadata.Namespace})
		if err != nil {
			return Result{}, err
		}
		for _, text := range all {
			one := child{text: text}
			if err := decode(string(text), &one.head); err != nil {
				return Result{}, err
			}
			for _, owner := range one.Metadata.OwnerReferences {
				if owner.UID == at.Metadata.UID && owner.Controller != nil && *owner.Controller {
					present, texts = append(present, one), append(texts, text)
				}
			}
		}
	}
	composed, err := of.Sync(parent, texts, cx)
	if err != nil {
		return Result{}, err
	}
	var wanted []child
	seen := map[string]bool{}
	for _, object := range composed.Children {
		one, err := of.wanted(object, at.Metadata.Namespace)
		if err != nil {
			return Result{}, err
		}
		if seen[one.key()] {
			return Result{}, fmt.Errorf("sync wants two children %s", one.key())
		}
		seen[one.key()] = true
		wanted = append(wanted, one)
	}
	for _, one := range wanted {
		if err := cx.ApplyChild(one.text); err != nil {
			return Result{}, err
		}
	}
	for _, one := range present {
		if !seen[one.key()] && one.Metadata.DeletionTimestamp == "" {
			if err := cx.Delete(one.text); err != nil {
				return Result{}, err
			}
		}
	}
	if composed.Status != nil {
		if err := cx.ApplyStatus(parent, composed.Status); err != nil {
			return Result{}, err
		}
	}
	return composed.Result, nil
}

func (of Composer[T]) wanted(object any, namespace string) (child, error) {
	at, text, err := headOf(object)
	if err != nil {
		return child{}, err
	}
	one := child{head: at, text: json.RawMessage(text)}
	isKnown := false
	for _, kind := range of.Children {
		isKnown = isKnown || kind == at.kind()
	}
	if !isKnown {
		return child{}, fmt.Errorf("sync wants a %s, which Children does not name", at.kind())
	}
	if at.Metadata.Namespace != "" || namespace == "" {
		return one, nil
	}
	var fields map[string]json.RawMessage
	var metadata map[string]any
	if err := decode(text, &fields); err != nil {
		return child{}, err
	}
	if err := decode(string(fields["metadata"]), &metadata); err != nil {
		return child{}, err
	}
	metadata["namespace"], one.Metadata.Namespace = namespace, namespace
	if fields["metadata"], err = json.Marshal(metadata); err != nil {
		return child{}, err
	}
	one.text, err = json.Marshal(fields)
	return one, err
}
