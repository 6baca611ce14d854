{{/* What all names begin with; the longest ending is -watch-builtin. */}}
{{- define "nagaya.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- .Values.fullnameOverride | default $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}

{{/* What pods of this release are known by. A Deployment's selector can never change: nothing else goes in here. */}}
{{- define "nagaya.selector" -}}
app.kubernetes.io/name: {{ include "nagaya.name" . }}
{{- end -}}

{{/* Labels in flow style. Those of Helm itself are its own to add, and none changes with a version. */}}
{{- define "nagaya.labels" -}}
{{ include "nagaya.selector" . }}, app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "nagaya.account" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "nagaya.name" .) }}
{{- else -}}
{{ required "serviceAccount.name: name the account that the host runs as, or let serviceAccount.create make one" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "nagaya.subject" -}}
{ kind: ServiceAccount, name: {{ include "nagaya.account" . }}, namespace: {{ .Release.Namespace }} }
{{- end -}}

{{- define "nagaya.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{/* Whether the disk can be at one node only: then one replica, and the old one goes before the new one comes. */}}
{{- define "nagaya.oneNode" -}}
{{- if and .Values.persistence.enabled (ne .Values.persistence.accessMode "ReadWriteMany") }}yes{{ end -}}
{{- end -}}

{{/* Files that the host reads at its start. */}}
{{- define "nagaya.files" -}}
{{- with .Values.registries }}
{{- if or .entries .onlyListed }}
registries.yaml: |
  {{- dict "registries" .entries "onlyListed" .onlyListed | toYaml | nindent 2 }}
{{- end }}
{{- end }}
{{- with .Values.policy }}
policy.yaml: |
  {{- if kindIs "string" . }}{{ . | nindent 2 }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end -}}
