// Package host is the host as a component imports it: the contract in the forms of the canonical ABI.
package host

import (
	"runtime"
	"unsafe"

	"nagaya.dev/sdk/internal/api"
)

// A string crosses as its address and length, a record as its fields; more than sixteen values cross in memory.

//go:wasmimport nagaya:controller/cluster@0.2.0 get
func get(group, version, kind, namespace, name string, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 get-live
func getLive(group, version, kind, namespace, name string, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 find
func find(arguments, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 apply
func apply(object string, ownership uint32, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 apply-status
func applyStatus(object string, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 create
func create(object string, child bool, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 patch
func patch(group, version, kind, namespace, name string, way uint32, body string, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 remove
func remove(group, version, kind, namespace, name, uid, resourceVersion string, propagation uint32, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/cluster@0.2.0 emit-event
func emitEvent(arguments, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/runtime@0.2.0 now
func now() float64

//go:wasmimport nagaya:controller/runtime@0.2.0 random
func random(length uint32, answer unsafe.Pointer)

//go:wasmimport nagaya:controller/runtime@0.2.0 config
func config(answer unsafe.Pointer)

//go:wasmimport nagaya:controller/runtime@0.2.0 log
func log(level uint32, message string, fields unsafe.Pointer, count uint32)

// A collection reads the clock, and no import may be called while the host asks for memory: the adapter answers from memory then.
//
//go:wasmimport wasi_snapshot_preview1 adapter_monotonic_clock_set_paused
func pauseClock(paused bool)

// What the host has written into this memory stays: an instance lives for one call.
var kept [][]uint64

// Go takes all memory beyond its own for its own, whoever has grown it: who else needs some gets it from here.
//
//go:linkname sbrk runtime.sbrk
func sbrk(size uintptr) unsafe.Pointer

var isReady bool

func init() { isReady = true }

//go:wasmexport cabi_realloc
func realloc(_ unsafe.Pointer, _, align, size uint32) unsafe.Pointer {
	if !isReady {
		// The adapter asks before the runtime has begun, and no collector knows of what it gets.
		at := sbrk(uintptr(size + align))
		return unsafe.Add(at, -uintptr(at)&uintptr(align-1))
	}
	pauseClock(true)
	block := make([]uint64, (size+7)/8+1)
	kept = append(kept, block)
	pauseClock(false)
	return unsafe.Pointer(unsafe.SliceData(block))
}

var guest api.Guest

// Export makes this the guest of the component.
func Export(it api.Guest) { guest = it }

// What the exports answer with.
var answered [4]uint32

//go:wasmexport nagaya:controller/guest@0.2.0#describe
func describe() unsafe.Pointer {
	if guest == nil {
		return failed("no controller is exported: call nagaya.Export in an init function")
	}
	text, err := guest.Describe(Host{})
	if err != nil {
		return failed(err.Error())
	}
	at, length := words(text)
	answered = [4]uint32{0, at, length}
	return unsafe.Pointer(&answered)
}

//go:wasmexport nagaya:controller/guest@0.2.0#reconcile
func reconcile(namespace unsafe.Pointer, namespaceLength uint32, name unsafe.Pointer, nameLength uint32) unsafe.Pointer {
	outcome := guest.Run(Host{}, text(namespace, namespaceLength), text(name, nameLength))
	switch outcome.Way {
	case "await-change":
		answered = [4]uint32{0, 0}
	case "requeue-after":
		answered = [4]uint32{0, 1, outcome.Millis}
	case "terminal", "invalid":
		way := uint32(2)
		if outcome.Way == "invalid" {
			way = 3
		}
		at, length := words(outcome.Words)
		answered = [4]uint32{0, way, at, length}
	default:
		return failed(outcome.Words)
	}
	return unsafe.Pointer(&answered)
}

func failed(why string) unsafe.Pointer {
	at, length := words(why)
	answered = [4]uint32{1, at, length}
	return unsafe.Pointer(&answered)
}

// Texts whose addresses leave for the host, kept from the collector.
var sent []string

func words(text string) (at, length uint32) {
	sent = append(sent, text)
	return uint32(uintptr(unsafe.Pointer(unsafe.StringData(text)))), uint32(len(text))
}

func text(at unsafe.Pointer, length uint32) string {
	return unsafe.String((*byte)(at), length)
}

func textAt(at, length uint32) string {
	//nolint:govet // An address in this memory, as the host gave it.
	return text(unsafe.Pointer(uintptr(at)), length)
}

// Answers are a tag and a payload at the next four bytes.
type answer [8]uint32

func (a *answer) at() unsafe.Pointer { return unsafe.Pointer(a) }

var reasons = [...]string{
	"not-found", "already-exists", "conflict", "forbidden", "invalid", "not-declared", "budget-exceeded", "unavailable",
}

func (a *answer) err() error {
	if a[0]&0xff == 0 {
		return nil
	}
	reason := a[1] & 0xff
	if reason == 0 {
		return &api.Error{Reason: reasons[0]}
	}
	return &api.Error{Reason: reasons[reason], Message: textAt(a[2], a[3])}
}

func (a *answer) object() (string, error) {
	if err := a.err(); err != nil {
		return "", err
	}
	return textAt(a[1], a[2]), nil
}

// Host is the host.
type Host struct{}

// Get implements api.Host.
func (Host) Get(kind api.Kind, namespace, name string) (string, error) {
	var a answer
	get(kind.Group, kind.Version, kind.Name, namespace, name, a.at())
	return a.object()
}

// GetLive implements api.Host.
func (Host) GetLive(kind api.Kind, namespace, name string) (string, error) {
	var a answer
	getLive(kind.Group, kind.Version, kind.Name, namespace, name, a.at())
	return a.object()
}

// Find implements api.Host.
func (Host) Find(kind api.Kind, by api.Find) ([]string, string, error) {
	var (
		a         answer
		arguments [17]uint32
	)
	for i, text := range []string{kind.Group, kind.Version, kind.Name, by.Namespace, by.Labels, by.Index, by.Value} {
		arguments[2*i], arguments[2*i+1] = words(text)
	}
	arguments[14] = by.Limit
	arguments[15], arguments[16] = words(by.After)
	find(unsafe.Pointer(&arguments), a.at())
	if err := a.err(); err != nil {
		return nil, "", err
	}
	items := make([]string, a[2])
	//nolint:govet // An address in this memory, as the host gave it.
	list := unsafe.Slice((*[2]uint32)(unsafe.Pointer(uintptr(a[1]))), a[2])
	for i, item := range list {
		items[i] = textAt(item[0], item[1])
	}
	return items, textAt(a[3], a[4]), nil
}

// Apply implements api.Host.
func (Host) Apply(object string, ownership api.Ownership) (string, error) {
	var a answer
	apply(object, uint32(ownership), a.at())
	return a.object()
}

// ApplyStatus implements api.Host.
func (Host) ApplyStatus(object string) (string, error) {
	var a answer
	applyStatus(object, a.at())
	return a.object()
}

// Create implements api.Host.
func (Host) Create(object string, child bool) (string, error) {
	var a answer
	create(object, child, a.at())
	return a.object()
}

// Patch implements api.Host.
func (Host) Patch(kind api.Kind, namespace, name string, merge bool, body string) (string, error) {
	var (
		a   answer
		way uint32
	)
	if merge {
		way = 1
	}
	patch(kind.Group, kind.Version, kind.Name, namespace, name, way, body, a.at())
	return a.object()
}

// Remove implements api.Host.
func (Host) Remove(kind api.Kind, namespace, name, uid, version string, propagation uint32) error {
	var a answer
	remove(kind.Group, kind.Version, kind.Name, namespace, name, uid, version, propagation, a.at())
	return a.err()
}

// EmitEvent implements api.Host.
func (Host) EmitEvent(event api.Event) error {
	var (
		a         answer
		arguments [17]uint32
	)
	for i, text := range []string{event.Kind.Group, event.Kind.Version, event.Kind.Name, event.Namespace, event.Name} {
		arguments[2*i], arguments[2*i+1] = words(text)
	}
	if event.Warning {
		arguments[10] = 1
	}
	for i, text := range []string{event.Reason, event.Action, event.Note} {
		arguments[11+2*i], arguments[12+2*i] = words(text)
	}
	emitEvent(unsafe.Pointer(&arguments), a.at())
	return a.err()
}

// Now implements api.Host.
func (Host) Now() float64 { return now() }

// Random implements api.Host.
func (Host) Random(length uint32) []byte {
	var a answer
	random(length, a.at())
	return []byte(textAt(a[0], a[1]))
}

// Config implements api.Host.
func (Host) Config() string {
	var a answer
	config(a.at())
	return textAt(a[0], a[1])
}

// Log implements api.Host.
func (Host) Log(level uint32, message string, fields []api.Field) {
	pairs := make([][4]uint32, len(fields)+1)
	for i, field := range fields {
		pairs[i][0], pairs[i][1] = words(field.Key)
		pairs[i][2], pairs[i][3] = words(field.Value)
	}
	log(level, message, unsafe.Pointer(unsafe.SliceData(pairs)), uint32(len(fields)))
	runtime.KeepAlive(pairs)
}
