// Package fake is a cluster in memory, for unit tests of a controller without host and without WebAssembly.
//
// It keeps objects as an API server does, enforces the manifest and the rules of owners, and forgets the fields that an apply
// leaves out. It knows no schemas, no defaults, no other field managers, no field selectors and no garbage collection.
package fake

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"nagaya.dev/sdk/internal/api"
)

// Small, so that the paging of lists is tested too.
const page = 10

type object = map[string]any

type key struct{ group, kind, namespace, name string }

type kinded struct {
	APIVersion    string   `json:"apiVersion"`
	Kind          string   `json:"kind"`
	Projection    string   `json:"projection"`
	LabelSelector string   `json:"labelSelector"`
	Verbs         []string `json:"verbs"`
	Name          string   `json:"name"`
	Path          string   `json:"path"`
}

func (k kinded) is(kind api.Kind) bool {
	of, err := api.ParseKind(k.APIVersion + "/" + k.Kind)
	return err == nil && of.Group == kind.Group && of.Name == kind.Name
}

type manifest struct {
	Primary                                   kinded
	Owns, Watches, ReadsLive, Writes, Indexes []kinded
	Finalizer                                 string
}

// Outcome is what a run ended in: Way is await-change, requeue-after, terminal, invalid or retry.
type Outcome = api.Outcome

// Event is one that a controller has told.
type Event = api.Event

// Cluster is a cluster in memory. A test plays the user with Put and Delete, and the host with Run.
type Cluster struct {
	objects  map[key]object
	applied  [2]map[key]object
	manifest *manifest
	primary  key
	uid      string
	config   any
	now      time.Time

	// Writes counts those that have changed something: a second run of a good controller adds none.
	Writes int
	// Events and Lines of the log so far.
	Events []Event
	Lines  []string
}

// New is an empty cluster at 2026-01-01T00:00:00Z.
func New() *Cluster {
	applied := [2]map[key]object{{}, {}}
	return &Cluster{objects: map[key]object{}, applied: applied, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// SetConfig sets spec.config of the controller.
func (c *Cluster) SetConfig(config any) { c.config = config }

// Advance moves the clock on.
func (c *Cluster) Advance(by time.Duration) { c.now = c.now.Add(by) }

// Run runs the controller once on the primary of that name, as the host does.
func (c *Cluster) Run(guest api.Guest, namespace, name string) (Outcome, error) {
	text, err := guest.Describe(c)
	if err != nil {
		return Outcome{}, err
	}
	if err := c.Declare(text); err != nil {
		return Outcome{}, err
	}
	of := c.manifest.Primary
	if err := c.Begin(of.APIVersion+"/"+of.Kind, namespace, name); err != nil {
		return Outcome{}, err
	}
	if finalizer := c.manifest.Finalizer; finalizer != "" {
		if object := c.objects[c.primary]; object != nil && at(object, "deletionTimestamp") == nil {
			finalizers, _ := at(object, "finalizers").([]any)
			if !slices.Contains(finalizers, any(finalizer)) {
				object = clone(object)
				metadata(object)["finalizers"] = append(slices.Clone(finalizers), finalizer)
				c.store(c.primary, object)
			}
		}
	}
	return guest.Run(c, namespace, name), nil
}

// Declare says what a controller may do from now on: the manifest, as describe answers it.
func (c *Cluster) Declare(text string) error {
	c.manifest = &manifest{}
	return json.Unmarshal([]byte(text), c.manifest)
}

// Begin begins a run of that primary, without a guest.
func (c *Cluster) Begin(kind, namespace, name string) error {
	of, err := api.ParseKind(kind)
	if err != nil {
		return err
	}
	c.primary = key{of.Group, of.Name, namespace, name}
	c.uid, _ = at(c.objects[c.primary], "uid").(string)
	return nil
}

// Put creates an object or replaces it, as a user. A status and finalizers that it does not have stay.
func (c *Cluster) Put(of any) error {
	text, err := json.Marshal(of)
	if err != nil {
		return err
	}
	body, err := read(string(text))
	if err != nil {
		return err
	}
	in, err := keyIn(body)
	if err != nil {
		return err
	}
	if before := c.objects[in]; before != nil {
		if _, has := body["status"]; !has && before["status"] != nil {
			body["status"] = before["status"]
		}
		for _, field := range []string{"finalizers", "deletionTimestamp"} {
			if metadata(body)[field] == nil && at(before, field) != nil {
				metadata(body)[field] = at(before, field)
			}
		}
	}
	for _, field := range []string{"creationTimestamp", "deletionTimestamp"} {
		if value, has := metadata(body)[field]; has && value == nil {
			delete(metadata(body), field)
		}
	}
	c.store(in, body)
	return nil
}

// Object reads an object into `into`, declared or not; false: there is none.
func (c *Cluster) Object(kind, namespace, name string, into any) (bool, error) {
	of, err := api.ParseKind(kind)
	if err != nil {
		return false, err
	}
	found := c.objects[key{of.Group, of.Name, namespace, name}]
	if found == nil {
		return false, nil
	}
	return true, json.Unmarshal([]byte(write(found)), into)
}

// Names are those of all objects of a kind, in the order of namespace and name.
func (c *Cluster) Names(kind string) []string {
	var names []string
	if of, err := api.ParseKind(kind); err == nil {
		for _, one := range c.of(of) {
			names = append(names, one.name)
		}
	}
	return names
}

// Delete deletes an object, as a user: while it has finalizers it is only marked.
func (c *Cluster) Delete(kind, namespace, name string) error {
	of, err := api.ParseKind(kind)
	if err != nil {
		return err
	}
	return c.delete(key{of.Group, of.Name, namespace, name})
}

// Get implements the contract.
func (c *Cluster) Get(kind api.Kind, namespace, name string) (string, error) {
	if _, err := c.watches(kind); err != nil {
		return "", err
	}
	found := c.objects[key{kind.Group, kind.Name, namespace, name}]
	if found != nil {
		seen, err := c.cached(kind, found)
		if err != nil || seen != nil {
			return write(seen), err
		}
	}
	return "", fail("not-found", "")
}

// GetLive implements the contract.
func (c *Cluster) GetLive(kind api.Kind, namespace, name string) (string, error) {
	if c.manifest == nil || !slices.ContainsFunc(c.manifest.ReadsLive, func(one kinded) bool { return one.is(kind) }) {
		if _, err := c.watches(kind); err != nil {
			return "", err
		}
	}
	if found := c.objects[key{kind.Group, kind.Name, namespace, name}]; found != nil {
		return write(found), nil
	}
	return "", fail("not-found", "")
}

// Find implements the contract.
func (c *Cluster) Find(kind api.Kind, find api.Find) ([]string, string, error) {
	if _, err := c.watches(kind); err != nil {
		return nil, "", err
	}
	path := ""
	if find.Index != "" {
		for _, one := range c.manifest.Indexes {
			if one.Name == find.Index && one.is(kind) {
				path = one.Path
			}
		}
		if path == "" {
			return nil, "", fail("not-declared", "no index "+find.Index)
		}
	}
	var items []string
	for _, in := range c.of(kind) {
		one := c.objects[in]
		is, err := selects(find.Labels, one)
		if err != nil {
			return nil, "", err
		}
		if !is || (find.Namespace != "" && find.Namespace != in.namespace) || (path != "" && !isIndexed(one, path, find.Value)) {
			continue
		}
		seen, err := c.cached(kind, one)
		if err != nil {
			return nil, "", err
		}
		if seen != nil {
			items = append(items, write(seen))
		}
	}
	from, _ := strconv.Atoi(find.After)
	limit := int(find.Limit)
	if limit == 0 {
		limit = page
	}
	items = items[min(from, len(items)):]
	if len(items) > limit {
		return items[:limit], strconv.Itoa(from + limit), nil
	}
	return items, "", nil
}

// Apply implements the contract.
func (c *Cluster) Apply(text string, ownership api.Ownership) (string, error) {
	body, in, err := c.body(text, "apply")
	if err != nil {
		return "", err
	}
	if ownership == api.Child || ownership == api.Adopt {
		if err := c.asChild(body); err != nil {
			return "", err
		}
	}
	return c.merge(in, body, 0, ownership == api.Adopt)
}

// ApplyStatus implements the contract.
func (c *Cluster) ApplyStatus(text string) (string, error) {
	body, in, err := c.body(text, "applyStatus")
	if err != nil {
		return "", err
	}
	if c.objects[in] == nil {
		return "", fail("not-found", "")
	}
	return c.merge(in, body, 1, false)
}

// Create implements the contract.
func (c *Cluster) Create(text string, child bool) (string, error) {
	body, err := read(text)
	if err != nil {
		return "", err
	}
	if prefix, is := metadata(body)["generateName"].(string); is && metadata(body)["name"] == nil {
		metadata(body)["name"] = fmt.Sprintf("%s%05d", prefix, c.Writes)
	}
	body, in, err := c.body(write(body), "create")
	if err != nil {
		return "", err
	}
	if child {
		if err := c.asChild(body); err != nil {
			return "", err
		}
	}
	if c.objects[in] != nil {
		return "", fail("already-exists", in.kind+" "+in.name+" exists")
	}
	if err := c.checkOwners(in, body, false); err != nil {
		return "", err
	}
	return write(c.store(in, body)), nil
}

// Patch implements the contract.
func (c *Cluster) Patch(kind api.Kind, namespace, name string, merge bool, body string) (string, error) {
	if err := c.mayWrite(kind, "patch"); err != nil {
		return "", err
	}
	in := key{kind.Group, kind.Name, namespace, name}
	found := c.objects[in]
	if found == nil {
		return "", fail("not-found", "")
	}
	patch, err := parse(body)
	if err != nil {
		return "", err
	}
	var left any
	if merge {
		left = merged(clone(found), patch)
	} else if left, err = patched(clone(found), patch); err != nil {
		return "", err
	}
	whole, _ := left.(object)
	if err := c.checkOwners(in, whole, false); err != nil {
		return "", err
	}
	return write(c.store(in, whole)), nil
}

// Remove implements the contract.
func (c *Cluster) Remove(kind api.Kind, namespace, name, uid, version string, _ uint32) error {
	if err := c.mayWrite(kind, "delete"); err != nil {
		return err
	}
	in := key{kind.Group, kind.Name, namespace, name}
	if c.objects[in] == nil {
		return fail("not-found", "")
	}
	if err := c.isCurrent(in, object{"uid": uid, "resourceVersion": version}); err != nil {
		return err
	}
	return c.delete(in)
}

// EmitEvent implements the contract.
func (c *Cluster) EmitEvent(event api.Event) error {
	isIt := func(one kinded) bool { return one.is(event.Kind) }
	if c.manifest == nil || !slices.ContainsFunc(slices.Concat(c.manifest.Writes, c.manifest.ReadsLive), isIt) {
		if _, err := c.watches(event.Kind); err != nil {
			return err
		}
	}
	c.Events = append(c.Events, event)
	return nil
}

// Now implements the contract.
func (c *Cluster) Now() float64 { return float64(c.now.UnixMilli()) }

// Random implements the contract.
func (c *Cluster) Random(length uint32) []byte {
	bytes := make([]byte, length)
	for i := range bytes {
		bytes[i] = byte(i)
	}
	return bytes
}

// Config implements the contract.
func (c *Cluster) Config() string { return write(c.config) }

// Log implements the contract.
func (c *Cluster) Log(level uint32, message string, fields []api.Field) {
	line := []string{"error", "warn", "info", "debug"}[min(level, 3)] + " " + message
	for _, field := range fields {
		line += " " + field.Key + "=" + field.Value
	}
	c.Lines = append(c.Lines, line)
}

func (c *Cluster) of(kind api.Kind) []key {
	var all []key
	for in := range c.objects {
		if in.group == kind.Group && in.kind == kind.Name {
			all = append(all, in)
		}
	}
	slices.SortFunc(all, func(a, b key) int {
		return strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name)
	})
	return all
}

func (c *Cluster) watches(kind api.Kind) ([]kinded, error) {
	if c.manifest == nil {
		return nil, fail("not-declared", "no controller runs")
	}
	var all []kinded
	add := func(one kinded, projection string) {
		if one.Projection == "" {
			one.Projection = projection
		}
		if one.is(kind) {
			all = append(all, one)
		}
	}
	add(c.manifest.Primary, "full")
	for _, one := range c.manifest.Owns {
		add(one, "metadata")
	}
	for _, one := range c.manifest.Watches {
		add(one, "full")
	}
	if all == nil {
		return nil, fail("not-declared", "no watch of "+kind.Name)
	}
	return all, nil
}

func (c *Cluster) cached(kind api.Kind, of object) (object, error) {
	watches, err := c.watches(kind)
	if err != nil {
		return nil, err
	}
	isSeen, isFull := false, false
	for _, one := range watches {
		is, err := selects(one.LabelSelector, of)
		if err != nil {
			return nil, err
		}
		isSeen, isFull = isSeen || is, isFull || one.Projection == "full"
	}
	switch {
	case !isSeen:
		return nil, nil
	case isFull:
		return of, nil
	default:
		return object{"apiVersion": of["apiVersion"], "kind": of["kind"], "metadata": of["metadata"]}, nil
	}
}

func (c *Cluster) mayWrite(kind api.Kind, verb string) error {
	if c.manifest != nil {
		for _, one := range c.manifest.Writes {
			if one.is(kind) && slices.Contains(one.Verbs, verb) {
				return nil
			}
		}
	}
	return fail("not-declared", "no write "+verb+" of "+kind.Name)
}

func (c *Cluster) body(text, verb string) (object, key, error) {
	body, err := read(text)
	if err != nil {
		return nil, key{}, err
	}
	kind, err := kindOf(body)
	if err != nil {
		return nil, key{}, err
	}
	if err := c.mayWrite(kind, verb); err != nil {
		return nil, key{}, err
	}
	in, err := keyIn(body)
	return body, in, err
}

// isCurrent refuses an object that has not the uid and the resourceVersion that are named.
func (c *Cluster) isCurrent(in key, named object) error {
	for _, field := range []string{"uid", "resourceVersion"} {
		if wanted, _ := named[field].(string); wanted != "" && wanted != at(c.objects[in], field) {
			return fail("conflict", fmt.Sprintf("%s is not %s: %s has changed", field, wanted, in.name))
		}
	}
	return nil
}

// merge puts the body over the object and takes out what the last body had and this one does not.
func (c *Cluster) merge(in key, body object, part int, adopts bool) (string, error) {
	if err := c.checkOwners(in, body, adopts); err != nil {
		return "", err
	}
	if err := c.isCurrent(in, metadata(body)); err != nil {
		return "", err
	}
	var left any = object{}
	if found := c.objects[in]; found != nil {
		left = clone(found)
	}
	if last := c.applied[part][in]; last != nil {
		prune(left, last, body)
	}
	c.applied[part][in] = clone(body)
	whole, _ := overlaid(left, body).(object)
	return write(c.store(in, whole)), nil
}

// store puts an object in the place of the present one, with what a server sets.
func (c *Cluster) store(in key, given object) object {
	before, of := c.objects[in], clone(given)
	head := metadata(of)
	isChanged := !reflect.DeepEqual(content(of), content(before)) ||
		(at(before, "deletionTimestamp") == nil) != (head["deletionTimestamp"] == nil)
	delete(head, "resourceVersion")
	if before == nil {
		head["creationTimestamp"], head["uid"] = c.now.Format(time.RFC3339), fmt.Sprintf("uid-%d", c.Writes+1)
	} else {
		for _, field := range []string{"creationTimestamp", "uid", "resourceVersion"} {
			head[field] = at(before, field)
		}
	}
	if _, has := of["spec"]; has {
		generation := 0
		if number, is := at(before, "generation").(json.Number); is {
			generation, _ = strconv.Atoi(number.String())
		}
		if isChanged {
			generation++
		}
		head["generation"] = json.Number(strconv.Itoa(generation))
	}
	if reflect.DeepEqual(of, before) {
		return of
	}
	c.Writes++
	head["resourceVersion"] = strconv.Itoa(c.Writes)
	finalizers, _ := head["finalizers"].([]any)
	if head["deletionTimestamp"] != nil && len(finalizers) == 0 {
		delete(c.objects, in)
		delete(c.applied[0], in)
		delete(c.applied[1], in)
	} else {
		c.objects[in] = of
	}
	return of
}

func (c *Cluster) delete(in key) error {
	found := c.objects[in]
	if found == nil {
		return fail("not-found", "")
	}
	if at(found, "deletionTimestamp") == nil {
		left := clone(found)
		metadata(left)["deletionTimestamp"] = c.now.Format(time.RFC3339)
		c.store(in, left)
	}
	return nil
}

func owners(of object) []object {
	list, _ := at(of, "ownerReferences").([]any)
	var all []object
	for _, one := range list {
		if owner, is := one.(object); is {
			all = append(all, owner)
		}
	}
	return all
}

func (c *Cluster) asChild(body object) error {
	isOurs := func(owner object) bool { return c.uid != "" && owner["uid"] == c.uid }
	if slices.ContainsFunc(owners(body), isOurs) {
		return nil
	}
	primary := c.objects[c.primary]
	if c.uid == "" || at(primary, "uid") != c.uid || at(primary, "deletionTimestamp") != nil {
		return fail("conflict", "it cannot become a child of the primary, which is gone or being deleted")
	}
	list, _ := metadata(body)["ownerReferences"].([]any)
	owner := object{
		"apiVersion": primary["apiVersion"], "kind": primary["kind"], "name": c.primary.name, "uid": c.uid, "controller": true,
	}
	metadata(body)["ownerReferences"] = append(slices.Clone(list), owner)
	return nil
}

// checkOwners refuses owners that the garbage collector would not find, and new ones of somebody else's object.
func (c *Cluster) checkOwners(in key, left object, adopts bool) error {
	isOurs := func(owner object) bool { return c.uid != "" && owner["uid"] == c.uid }
	named := owners(left)
	for _, owner := range named {
		kind, _ := kindOf(owner)
		isNamed := kind.Group == c.primary.group && kind.Name == c.primary.kind && owner["name"] == c.primary.name
		whose := "the owner reference of " + in.kind + " " + in.name
		switch {
		case isOurs(owner) && !isNamed:
			return fail("invalid", whose+" has another object's name")
		case isOurs(owner) && c.primary.namespace != "" && in.namespace == "":
			return fail("invalid", whose+": a cluster-scoped object cannot have an owner in a namespace")
		case isOurs(owner) && c.primary.namespace != "" && in.namespace != c.primary.namespace:
			return fail("invalid", whose+" crosses namespaces")
		case !isOurs(owner) && isNamed && (c.primary.namespace == "" || in.namespace == c.primary.namespace):
			return fail("conflict", whose+" has the uid of another object than the one of this run")
		}
	}
	before := c.objects[in]
	if before == nil {
		return nil
	}
	has := owners(before)
	for _, rival := range has {
		contends := func(owner object) bool { return owner["controller"] == true && owner["uid"] != rival["uid"] }
		if rival["controller"] == true && !isOurs(rival) && slices.ContainsFunc(named, contends) {
			return fail("conflict", fmt.Sprintf("%s %s is controlled by %s %s", in.kind, in.name, rival["kind"], rival["name"]))
		}
	}
	isNew := func(owner object) bool {
		return !slices.ContainsFunc(has, func(known object) bool { return known["uid"] == owner["uid"] })
	}
	if !adopts && !slices.ContainsFunc(has, isOurs) && slices.ContainsFunc(named, isNew) {
		return fail("conflict", in.kind+" "+in.name+" exists and is not this primary's; to take it over, use Adopt")
	}
	return nil
}

func fail(reason, message string) error { return &api.Error{Reason: reason, Message: message} }

func parse(text string) (any, error) {
	var value any
	from := json.NewDecoder(strings.NewReader(text))
	from.UseNumber()
	if err := from.Decode(&value); err != nil {
		return nil, fail("invalid", err.Error())
	}
	return value, nil
}

func read(text string) (object, error) {
	value, err := parse(text)
	if err != nil {
		return nil, err
	}
	body, _ := value.(object)
	if _, is := body["metadata"].(object); !is {
		return nil, fail("invalid", "not an object with apiVersion, kind and metadata")
	}
	return body, nil
}

func write(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
}

func kindOf(body object) (api.Kind, error) {
	apiVersion, _ := body["apiVersion"].(string)
	kind, _ := body["kind"].(string)
	of, err := api.ParseKind(apiVersion + "/" + kind)
	if err != nil {
		return of, fail("invalid", err.Error())
	}
	return of, nil
}

func keyIn(body object) (key, error) {
	kind, err := kindOf(body)
	if err != nil {
		return key{}, err
	}
	name, _ := metadata(body)["name"].(string)
	namespace, _ := metadata(body)["namespace"].(string)
	if name == "" {
		return key{}, fail("invalid", "no metadata.name")
	}
	return key{kind.Group, kind.Name, namespace, name}, nil
}

func metadata(of object) object {
	head, _ := of["metadata"].(object)
	return head
}

func at(of object, field string) any { return metadata(of)[field] }

func clone(of object) object {
	copied, _ := deep(of).(object)
	return copied
}

func deep(value any) any {
	switch of := value.(type) {
	case object:
		copied := make(object, len(of))
		for field, inner := range of {
			copied[field] = deep(inner)
		}
		return copied
	case []any:
		copied := make([]any, len(of))
		for i, inner := range of {
			copied[i] = deep(inner)
		}
		return copied
	default:
		return value
	}
}

func content(of object) object {
	left := maps.Clone(of)
	delete(left, "metadata")
	delete(left, "status")
	if len(left) == 0 {
		return nil
	}
	return left
}

func isIndexed(of object, path, value string) bool {
	var found any = of
	for segment := range strings.SplitSeq(path, ".") {
		inner, _ := found.(object)
		found = inner[segment]
	}
	if list, is := found.([]any); is {
		return slices.Contains(list, any(value))
	}
	return found == any(value)
}

// overlaid are the fields of body over those of target; a null is a value.
func overlaid(target, body any) any {
	over, is := body.(object)
	under, had := target.(object)
	if !is || !had {
		return deep(body)
	}
	for field, value := range over {
		under[field] = overlaid(under[field], value)
	}
	return under
}

// prune takes out of target what last has and next does not.
func prune(target, last, next any) {
	from, is := target.(object)
	had, was := last.(object)
	has, _ := next.(object)
	if !is || !was {
		return
	}
	for field, old := range had {
		now, isKept := has[field]
		inner, isMap := from[field].(object)
		if _, wasMap := old.(object); isMap && wasMap {
			prune(inner, old, now)
			if !isKept && len(inner) == 0 {
				delete(from, field)
			}
		} else if !isKept {
			delete(from, field)
		}
	}
}

// merged is RFC 7386.
func merged(target, patch any) any {
	changes, is := patch.(object)
	if !is {
		return patch
	}
	left, is := target.(object)
	if !is {
		left = object{}
	}
	for field, value := range changes {
		if value == nil {
			delete(left, field)
		} else {
			left[field] = merged(left[field], value)
		}
	}
	return left
}
