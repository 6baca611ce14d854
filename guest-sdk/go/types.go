package nagaya

// Resource is embedded by the author's types: apiVersion, kind and metadata. Types of k8s.io/api do as well, and cost a few
// megabytes.
type Resource struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   ObjectMeta `json:"metadata"`
}

// ObjectMeta is the part of an object's metadata that controllers use.
type ObjectMeta struct {
	Name              string            `json:"name,omitempty"`
	GenerateName      string            `json:"generateName,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	UID               string            `json:"uid,omitempty"`
	ResourceVersion   string            `json:"resourceVersion,omitempty"`
	Generation        int64             `json:"generation,omitempty"`
	CreationTimestamp string            `json:"creationTimestamp,omitempty"`
	DeletionTimestamp string            `json:"deletionTimestamp,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	Finalizers        []string          `json:"finalizers,omitempty"`
	OwnerReferences   []OwnerReference  `json:"ownerReferences,omitempty"`
}

// OwnerReference is an owner of an object.
type OwnerReference struct {
	APIVersion         string `json:"apiVersion"`
	Kind               string `json:"kind"`
	Name               string `json:"name"`
	UID                string `json:"uid"`
	Controller         *bool  `json:"controller,omitempty"`
	BlockOwnerDeletion *bool  `json:"blockOwnerDeletion,omitempty"`
}

// Condition is a condition of a status.
type Condition struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
	LastTransitionTime string `json:"lastTransitionTime"`
	ObservedGeneration int64  `json:"observedGeneration,omitempty"`
}

// ConfigMap is the core one, which most first controllers make.
type ConfigMap struct {
	Resource
	Data map[string]string `json:"data,omitempty"`
}

// New is the head of an object of kind ("v1/ConfigMap") and name, in the namespace of owner.
func New(kind, name string, owner Resource) Resource {
	of, _ := named(kind)
	apiVersion, _ := of["apiVersion"].(string)
	word, _ := of["kind"].(string)
	return Resource{apiVersion, word, ObjectMeta{Name: name, Namespace: owner.Metadata.Namespace}}
}
