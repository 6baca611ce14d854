package nagaya_test

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"nagaya.dev/sdk"
	"nagaya.dev/sdk/fake"
)

type Site struct {
	nagaya.Resource
	Spec struct {
		Title string   `json:"title"`
		Pages []string `json:"pages,omitempty"`
		Big   int64    `json:"big,omitempty"`
	} `json:"spec"`
	Status struct {
		Conditions []nagaya.Condition `json:"conditions,omitempty"`
		Seen       int                `json:"seen"`
	} `json:"status,omitzero"`
}

const siteKind = "example.com/v1/Site"

func site(pages ...string) *Site {
	of := &Site{Resource: nagaya.New(siteKind, "web", nagaya.Resource{})}
	of.Metadata.Namespace = "demo"
	of.Spec.Title, of.Spec.Pages, of.Spec.Big = "One", pages, 9007199254740993
	return of
}

func configMap(name string, data map[string]string) nagaya.ConfigMap {
	return nagaya.ConfigMap{Resource: nagaya.New("v1/ConfigMap", name, nagaya.Resource{}), Data: data}
}

func run(t *testing.T, cluster *fake.Cluster, guest nagaya.Guest) fake.Outcome {
	t.Helper()
	outcome, err := cluster.Run(guest, "demo", "web")
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

func check(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func put(t *testing.T, cluster *fake.Cluster, object any) {
	t.Helper()
	if err := cluster.Put(object); err != nil {
		t.Fatal(err)
	}
}

func TestThePublishedExampleIsWhatTheBuilderMakes(t *testing.T) {
	text, err := os.ReadFile("../../wit/manifest.example.json")
	if err != nil {
		t.Fatal(err)
	}
	var published, made map[string]any
	if err := json.Unmarshal(text, &published); err != nil {
		t.Fatal(err)
	}
	delete(published, "http")
	manifest, err := nagaya.Needs{
		Primary: nagaya.Watch{
			Kind: siteKind, Labels: "tier=web", Fields: "metadata.namespace!=kube-system",
			When: nagaya.Any(nagaya.GenerationChanged, nagaya.AnnotationsChanged),
		},
		Owns: []nagaya.Watch{
			{
				Kind: "apps/v1/Deployment", Projection: "full",
				When: nagaya.All(nagaya.GenerationChanged, nagaya.Not(nagaya.MatchesLabels("paused"))),
			},
			{Kind: "v1/ConfigMap", Labels: "made-by=site"},
		},
		Watches: []nagaya.Watch{
			{Kind: "example.com/v1/Theme", Wakes: nagaya.Same},
			{Kind: "example.com/v1/Theme", Wakes: nagaya.Owner, When: nagaya.LabelsChanged},
			{Kind: "v1/Service", Projection: "metadata", Wakes: nagaya.Controlled},
			{Kind: "v1/ConfigMap", Fields: "metadata.name=defaults", Wakes: nagaya.Every, When: nagaya.ResourceVersionChanged},
			{Kind: "v1/Pod", Projection: "metadata", Wakes: nagaya.Label("example.com/site", "example.com/site-namespace")},
			{Kind: "v1/Namespace", Projection: "metadata", Wakes: nagaya.Annotation("example.com/site", "")},
			{Kind: "example.com/v1/Claim", Wakes: nagaya.Field("spec.site.name", "spec.site.namespace")},
			{Kind: "v1/Secret", Projection: "metadata", Wakes: nagaya.ByIndex("by-secret")},
		},
		ReadsLive: []string{"v1/Secret"},
		Writes:    map[string]nagaya.Verbs{"v1/ConfigMap": {"create", "apply", "applyStatus", "patch", "delete"}},
		Indexes:   []nagaya.Index{{Name: "by-secret", Kind: siteKind, Path: "spec.secretName"}},
		Finalizer: "example.com/cleanup",
	}.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(manifest), &made); err != nil {
		t.Fatal(err)
	}
	byKind := func(manifest map[string]any) map[string]any {
		all := map[string]any{}
		for _, write := range manifest["writes"].([]any) {
			all[write.(map[string]any)["kind"].(string)] = write
		}
		return all
	}
	writes := byKind(made)
	// The builder knows that a finalizer is taken away by a patch.
	check(t, writes["Site"].(map[string]any)["verbs"], []any{"patch"})
	delete(writes, "Site")
	check(t, writes, byKind(published))
	delete(made, "writes")
	delete(published, "writes")
	check(t, made, published)
}

func TestAChildAndAStatusAndASecondRunChangesNothing(t *testing.T) {
	guest := nagaya.Controller[Site]{
		Needs: nagaya.Needs{Primary: nagaya.Watch{Kind: siteKind}, Owns: []nagaya.Watch{{Kind: "v1/ConfigMap"}}, Status: true},
		Reconcile: func(of *Site, cx nagaya.Context) (nagaya.Result, error) {
			child := nagaya.ConfigMap{Resource: nagaya.New("v1/ConfigMap", "web", of.Resource)}
			child.Data = map[string]string{"big": fmt.Sprint(of.Spec.Big)}
			if err := cx.ApplyChild(child); err != nil {
				return nagaya.Result{}, err
			}
			ready := nagaya.Condition{Type: "Ready", Status: "True", Reason: "Applied"}
			ready = cx.Condition(of, of.Status.Conditions, ready)
			return nagaya.Result{}, cx.ApplyStatus(of, map[string]any{"conditions": []nagaya.Condition{ready}})
		},
	}
	cluster := fake.New()
	put(t, cluster, site())
	check(t, run(t, cluster, guest), fake.Outcome{Way: "await-change"})
	var child nagaya.ConfigMap
	var of Site
	_, _ = cluster.Object("v1/ConfigMap", "demo", "web", &child)
	_, _ = cluster.Object(siteKind, "demo", "web", &of)
	check(t, child.Metadata.OwnerReferences[0].UID, of.Metadata.UID)
	check(t, child.Data["big"], "9007199254740993")
	before := cluster.Writes
	cluster.Advance(time.Minute)
	run(t, cluster, guest)
	check(t, cluster.Writes, before)
	check(t, of.Status.Conditions[0].LastTransitionTime, "2026-01-01T00:00:00Z")
}

func TestWhateverGoesWrongIsAnAnswerWithItsWords(t *testing.T) {
	cluster := fake.New()
	put(t, cluster, site())
	failing := func(with func() error) fake.Outcome {
		return run(t, cluster, nagaya.Controller[Site]{
			Needs:     nagaya.Needs{Primary: nagaya.Watch{Kind: siteKind}},
			Reconcile: func(*Site, nagaya.Context) (nagaya.Result, error) { return nagaya.Result{}, with() },
		})
	}
	of := func(err error) func() error { return func() error { return err } }
	check(t, failing(of(nagaya.Terminal("no"))), fake.Outcome{Way: "terminal", Words: "no"})
	check(t, failing(of(fmt.Errorf("it is %w", nagaya.Invalid("bad")))), fake.Outcome{Way: "invalid", Words: "it is bad"})
	check(t, failing(of(&nagaya.APIError{Reason: "conflict", Message: "m"})), fake.Outcome{Way: "retry", Words: "conflict: m"})
	check(t, failing(of(&nagaya.APIError{Reason: "invalid", Message: "m"})), fake.Outcome{Way: "terminal", Words: "invalid: m"})
	outcome := failing(func() error { var none *Site; return fmt.Errorf("%s", none.Spec.Title) })
	check(t, outcome.Way, "retry")
	if line := cluster.Lines[len(cluster.Lines)-1]; !strings.Contains(line, "nil pointer") || !strings.Contains(line, "sdk_test.go") {
		t.Error(line)
	}
}

func TestAFinalizerIsThereBeforeTheFirstRunAndGoesWithTheCleanup(t *testing.T) {
	const finalizer = "example.com/cleanup"
	guest := nagaya.Controller[Site]{
		Needs: nagaya.Needs{Primary: nagaya.Watch{Kind: siteKind}, Finalizer: finalizer},
		Reconcile: func(of *Site, _ nagaya.Context) (nagaya.Result, error) {
			check(t, of.Metadata.Finalizers, []string{finalizer})
			return nagaya.Result{}, nil
		},
		Deleting: func(of *Site, cx nagaya.Context) (nagaya.Result, error) {
			return nagaya.Result{}, cx.RemoveFinalizer(of, finalizer)
		},
		Gone: func(string, string, nagaya.Context) (nagaya.Result, error) {
			return nagaya.Result{RequeueAfter: 5 * time.Second}, nil
		},
	}
	cluster := fake.New()
	put(t, cluster, site())
	run(t, cluster, guest)
	if err := cluster.Delete(siteKind, "demo", "web"); err != nil {
		t.Fatal(err)
	}
	check(t, cluster.Names(siteKind), []string{"web"})
	run(t, cluster, guest)
	check(t, cluster.Names(siteKind), []string(nil))
	check(t, run(t, cluster, guest), fake.Outcome{Way: "requeue-after", Millis: 5_000})
}

func TestAComposerAppliesWhatIsWantedAndTakesAwayWhatIsNot(t *testing.T) {
	guest := nagaya.Compose(nagaya.Composer[Site]{
		Needs:    nagaya.Needs{Primary: nagaya.Watch{Kind: siteKind}, Status: true},
		Children: []string{"v1/ConfigMap"},
		Sync: func(of *Site, children nagaya.Children, _ nagaya.Context) (nagaya.Composed, error) {
			composed := nagaya.Composed{Status: map[string]int{"seen": len(children)}}
			for _, page := range of.Spec.Pages {
				composed.Children = append(composed.Children, configMap("web-"+page, map[string]string{"page": page}))
			}
			return composed, nil
		},
	})
	cluster := fake.New()
	theirs := configMap("web-theirs", nil)
	theirs.Metadata.Namespace = "demo"
	put(t, cluster, theirs)
	for _, one := range []struct {
		pages []string
		seen  int
	}{{[]string{"a", "b"}, 0}, {[]string{"b", "c"}, 2}, {nil, 2}} {
		put(t, cluster, site(one.pages...))
		check(t, run(t, cluster, guest), fake.Outcome{Way: "await-change"})
		names := []string{"web-theirs"}
		for _, page := range one.pages {
			names = append(names, "web-"+page)
		}
		slices.Sort(names)
		check(t, cluster.Names("v1/ConfigMap"), names)
		var of Site
		_, _ = cluster.Object(siteKind, "demo", "web", &of)
		check(t, of.Status.Seen, one.seen)
	}
	put(t, cluster, site("a", "a"))
	if outcome := run(t, cluster, guest); !strings.Contains(outcome.Words, "two children v1/ConfigMap demo/web-a") {
		t.Error(outcome)
	}
}

func TestListsComeInPagesBySelectorAndByIndex(t *testing.T) {
	cluster := fake.New()
	put(t, cluster, site())
	for i := range 25 {
		one := configMap(fmt.Sprintf("m-%d", i), map[string]string{"of": []string{"even", "odd"}[i%2]})
		one.Metadata.Namespace, one.Metadata.Labels = "demo", map[string]string{"third": fmt.Sprint(i % 3)}
		put(t, cluster, one)
	}
	const kind = "v1/ConfigMap"
	var counts []int
	guest := nagaya.Controller[Site]{
		Needs: nagaya.Needs{
			Primary: nagaya.Watch{Kind: siteKind}, Watches: []nagaya.Watch{{Kind: kind, Wakes: nagaya.Same}},
			Indexes: []nagaya.Index{{Name: "of", Kind: kind, Path: "data.of"}},
		},
		Reconcile: func(_ *Site, cx nagaya.Context) (nagaya.Result, error) {
			for _, find := range []nagaya.Find{{}, {Labels: "third=0"}, {Index: "of", Value: "odd"}, {Namespace: "other"}} {
				all, err := nagaya.List[nagaya.ConfigMap](cx, kind, find)
				if err != nil {
					return nagaya.Result{}, err
				}
				counts = append(counts, len(all))
			}
			return nagaya.Result{}, nil
		},
	}
	check(t, run(t, cluster, guest), fake.Outcome{Way: "await-change"})
	check(t, counts, []int{25, 9, 12, 0})
}
